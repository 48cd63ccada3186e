"""`tusd-py sweep`: removes expired uploads now, or lists them.

A sweep needs the uploads' locks. A running server that keeps them in memory is asked to sweep; otherwise the command does.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from tusd_py.cli.options import option, quiet_settings, subcommand
from tusd_py.cli.output import clear_line, count_of, format_time, write_json, write_line
from tusd_py.cli.waiting import waiting
from tusd_py.settings.model import Settings

ABOUT = """\
Check every upload now: remove expired ones, finish those that were complete when a server crashed, and remove leftovers of
crashes. Give it the same options as the server. The server need not be running. Uploads in use are skipped.

With --dry-run nothing changes, and expired uploads are listed.
"""


@subcommand("[--dry-run] [--force] [--json] [options of serve]", ABOUT)
@option("--dry-run", "Change nothing; list the uploads that would be removed.", section="Sweep")
@option(
    "--force",
    "Remove expired uploads even if they are most of all uploads, or if the clock is far from that of the last sweep.",
    section="Sweep",
)
@option("--json", "Print one JSON object per line.", section="Sweep", name="as_json")
def command(dry_run: bool, force: bool, as_json: bool) -> int:
    """Sweep and return the exit code."""
    settings = quiet_settings("warning")
    return asyncio.run(_sweep(settings, dry_run=dry_run, force=force, as_json=as_json))


async def _sweep(settings: Settings, *, dry_run: bool, force: bool, as_json: bool) -> int:
    # Imported here, so that a wrong flag is reported without loading them.
    from tusd_py.service.connect import open_maintenance  # noqa: PLC0415
    from tusd_py.uploads.sweep import Expired  # noqa: PLC0415

    async def tell(expired: Expired) -> None:
        since = format_time(expired.since)
        clear_line()
        if as_json:
            write_json({"upload": expired.upload, "bytes": expired.bytes, "expired": since})
        else:
            write_line(f"{expired.upload}  {expired.bytes} bytes, expired {since}")

    async with (
        open_maintenance(settings, may_open=True, may_begin=not dry_run) as maintenance,
        waiting("sweeping"),
    ):
        report = await maintenance.sweep(
            "all", dry_run=dry_run, tell=tell if dry_run else None, force=force
        )
    seen = f"{count_of(report.seen, 'upload')} seen"
    if report.held and not as_json:
        write_line(
            f"{seen}, nothing removed now: {report.held_because} ({report.held} expired); "
            "if that is right, give --force"
        )
    elif as_json:
        write_json({"dry_run": dry_run, **asdict(report)})
    else:
        verb = "would be removed" if dry_run else "removed"
        details = (
            ""
            if dry_run
            else f", {report.finished} finished, {report.remains} leftovers of crashes removed"
        )
        skipped = report.failed + report.skipped
        failed = f", {skipped} skipped (the log says why)" if skipped else ""
        held = f"; the sweep would be held, as {report.held_because}" if report.held_because else ""
        write_line(f"{seen}: {report.expired} {verb}{details}{failed}{held}")
    return 1 if report.failed or report.held else 0
