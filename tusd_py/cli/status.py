"""`tusd-py status`: prints the state of sweeps, queues, workers and the scheduler, and what is wrong with them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from tusd_py import __version__
from tusd_py.cli.instance import instance_redis
from tusd_py.cli.options import coloured, option, quiet_settings, subcommand
from tusd_py.cli.output import (
    Palette,
    format_bytes,
    format_share,
    format_time,
    write_json,
    write_line,
)
from tusd_py.service.known_directories import KnownDirectories
from tusd_py.settings.model import Settings
from tusd_py.storage.base import VolumeMissing

if TYPE_CHECKING:
    from tusd_workers.status import Status

ABOUT = """\
Print the version, the disk, what servers did in the last hour, and the state of background jobs: how many uploads are
unfinished and due, the last sweeps, the schedule, queues and workers. Give it the same options as the server. Finished uploads
and the last hour are counted where there are operators (--admin).

The exit code is 1 if there is a problem: no worker or no scheduler where there should be one, failed jobs, events that failed
or have waited for too long, no sweep for too long, or an unavailable Redis.
"""


@subcommand("[--json] [options of serve]", ABOUT)
@option("--json", "Print JSON.", section="Output", name="as_json")
@coloured
def command(as_json: bool, color: str | None) -> int:
    """Print the status and return the exit code."""
    # What fails is reported in a line of the command.
    settings = quiet_settings("error")

    # Imported here, so that a wrong flag is reported without loading rq.
    from tusd_workers.status import collect  # noqa: PLC0415

    disk = _disk(settings)
    with instance_redis(settings) as url:
        status = collect(settings, url)
    problems = [*_directory_problems(settings), *status.problems(settings)]
    if as_json:
        known = {"version": __version__, "disk": disk}
        write_json({**known, **asdict(status), "problems": problems}, indent=2)
    else:
        palette = Palette(color)
        for line in _lines(status, disk):
            write_line(line)
        for problem in problems:
            write_line(palette.paint(f"PROBLEM    {problem}", "red"))
    return 1 if problems else 0


def _directory_problems(settings: Settings) -> Iterator[str]:
    if settings.s3_bucket:
        return
    try:
        KnownDirectories(settings).check(wait=0.0)
    except VolumeMissing as problem:
        yield str(problem)


def _disk(settings: Settings) -> dict[str, int] | None:
    """The space where the uploads are, in bytes; None for a bucket, or a directory that is not there."""
    if settings.s3_bucket:
        return None
    try:
        usage = shutil.disk_usage(settings.upload_dir)
    except FileNotFoundError:
        return None
    return {"free": usage.free, "total": usage.total}


def _lines(status: Status, disk: dict[str, int] | None) -> Iterator[str]:
    counts, activity = status.registry, status.activity
    yield f"version    {__version__}"
    if disk is not None:
        free, total = disk["free"], disk["total"]
        used = format_share(total - free, total)
        yield f"disk       {format_bytes(free)} of {format_bytes(total)} free, {used} used"
    known = "" if counts.is_whole else " (some may be missing: the next sweep looks at all)"
    yield f"uploads    {counts.known} unfinished, {counts.due} due{known}"
    if activity.finished is not None:
        yield f"finished   {activity.finished}, and {activity.parts} parts"
    if any(activity.hour.values()):
        rate = format_bytes(activity.hour["bytes"] / 3600)
        yield (
            f"last hour  {format_bytes(activity.hour['bytes'])} received ({rate}/s), {activity.hour['created']} created, "
            f"{activity.hour['finished']} finished, {activity.hour['refused']} refused"
        )
    for record in status.sweeps:
        yield (
            f"sweep      {record.kind}: {format_time(record.ended)}, {record.ended - record.began:.1f} s; {record.seen} seen, "
            f"{record.expired} removed, {record.finished} finished, {record.remains} leftovers of crashes removed, "
            f"{record.failed} skipped"
        )
    for name, when in status.schedule.items():
        yield f"next       {name}: {format_time(when)}, in {max(0.0, when - time.time()):.0f} s"
    for queue in status.queues:
        oldest = "" if queue.oldest is None else f", the first for {queue.oldest:.0f} s"
        yield (
            f"queue      {queue.name}: {queue.waiting} waiting{oldest}, {queue.running} running, {queue.failed} failed"
        )
    events = status.events
    if events.waiting or events.failed or events.done:
        oldest = "" if events.oldest is None else f", the first for {events.oldest:.0f} s"
        yield f"events     {events.waiting} waiting{oldest}, {events.failed} failed{_past(events.done)}"
    for worker in status.workers:
        job = f" {worker.job}" if worker.job else ""
        yield f"worker     {worker.host} pid {worker.pid}: {worker.state}{job}, heard {worker.heard:.0f} s ago"


def _past(done: dict[str, int]) -> str:
    """What has become of events since Redis was last empty."""
    names = {"failed": "attempts failed"}
    past = ", ".join(f"{count} {names.get(name, name)}" for name, count in sorted(done.items()))
    return past and f"; until now {past}"
