"""`tusd-py status`: prints the state of sweeps, queues, workers and the scheduler, and what is wrong with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from tusd_py import logs
from tusd_py.cli.instance import instance_redis
from tusd_py.cli.options import option, read_settings, subcommand
from tusd_py.cli.output import format_time, write_json, write_line

if TYPE_CHECKING:
    from tusd_workers.status import Status

ABOUT = """\
Print the state of background jobs: how many uploads are unfinished and due, the last sweeps, the schedule, queues and
workers. Give it the same options as the server.

The exit code is 1 if there is a problem: no worker, no scheduler, failed jobs, events that failed or have waited for too
long, no sweep for too long, or an unavailable Redis.
"""


@subcommand("[--json] [options of serve]", ABOUT)
@option("--json", "Print JSON.", section="Output", name="as_json")
def command(as_json: bool) -> int:
    """Print the status and return the exit code."""
    settings = read_settings().settings
    # What fails is reported in a line of the command.
    logs.configure(settings.log_format, "error")

    # Imported here, so that a wrong flag is reported without loading rq.
    from tusd_workers.status import collect  # noqa: PLC0415

    with instance_redis(settings) as url:
        status = collect(settings, url)
    problems = list(status.problems(settings))
    if as_json:
        write_json({**asdict(status), "problems": problems}, indent=2)
    else:
        for line in _lines(status, problems):
            write_line(line)
    return 1 if problems else 0


def _lines(status: Status, problems: list[str]) -> Iterator[str]:
    counts = status.registry
    known = "" if counts.is_whole else " (some may be missing: the next sweep looks at all)"
    yield f"uploads    {counts.known} unfinished, {counts.due} due{known}"
    for record in status.sweeps:
        yield (
            f"sweep      {record.kind}: {format_time(record.ended)}, {record.ended - record.began:.1f} s; {record.seen} seen, "
            f"{record.expired} removed, {record.finished} finished, {record.remains} remains, {record.failed} skipped"
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
        done = "".join(f", {count} {name}" for name, count in sorted(events.done.items()))
        yield f"events     {events.waiting} waiting{oldest}, {events.failed} failed{done}"
    for worker in status.workers:
        job = f" {worker.job}" if worker.job else ""
        yield f"worker     {worker.host} pid {worker.pid}: {worker.state}{job}, heard {worker.heard:.0f} s ago"
    for problem in problems:
        yield f"PROBLEM    {problem}"
