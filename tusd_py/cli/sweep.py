"""`tusd-py sweep`: removes what has expired now, or shows what would go.

A sweep needs the locks of the uploads. Where a server keeps them in its memory it is the server that sweeps, asked by this
command; otherwise the command does it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from dataclasses import asdict

from tusd_py import logs
from tusd_py.cli.output import format_time, write_json, write_line
from tusd_py.settings.commandline import Parser
from tusd_py.settings.load import add_flags, load_arguments
from tusd_py.settings.model import Settings

USAGE = "[--dry-run] [--force] [--json] [options of serve]"
ABOUT = """\
Look at every upload now: remove those that have expired, finish what was complete when a server died, clear away what crashes \
left behind. Give it the same options as the server; the server may run or not. Uploads in use are spared.

With --dry-run nothing changes, and what has expired is listed.
"""


def add_arguments(parser: Parser) -> None:
    """What to do, and all settings."""
    parser.option(
        "--dry-run",
        "Change nothing; list what would be removed.",
        section="Sweep",
        action="store_true",
    )
    parser.option(
        "--force",
        "Remove what has expired even if it is most of what there is, or the clock is far from that of the last sweep.",
        section="Sweep",
        action="store_true",
    )
    parser.option("--json", "Print a JSON object a line.", section="Sweep", action="store_true")
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Sweep; returns the exit code."""
    settings = load_arguments(arguments, os.environ).settings
    logs.configure(settings.log_format, "warning")

    # The server's parts: not needed to find out that a flag is wrong.
    from tusd_py.maintenance.local import MaintenanceError  # noqa: PLC0415

    try:
        return asyncio.run(
            _sweep(
                settings,
                dry_run=hasattr(arguments, "dry_run"),
                force=hasattr(arguments, "force"),
                as_json=hasattr(arguments, "json"),
            )
        )
    except MaintenanceError as problem:
        sys.stderr.write(f"tusd-py sweep: {problem}\n")
        return 1


async def _sweep(settings: Settings, *, dry_run: bool, force: bool, as_json: bool) -> int:
    from tusd_py.maintenance.local import Expired  # noqa: PLC0415
    from tusd_py.service.connect import open_maintenance  # noqa: PLC0415

    async def tell(expired: Expired) -> None:
        since = format_time(expired.since)
        if as_json:
            write_json({"upload": expired.upload, "bytes": expired.bytes, "expired": since})
        else:
            write_line(f"{expired.upload}  {expired.bytes} bytes, expired {since}")

    async with open_maintenance(settings, may_open=True) as maintenance:
        report = await maintenance.sweep(
            "all", dry_run=dry_run, tell=tell if dry_run else None, force=force
        )
    if report.held and not as_json:
        write_line(
            f"{report.seen} uploads seen: {report.held} would be removed, but {report.held_because}; "
            "if that is right, give --force"
        )
    elif as_json:
        write_json({"dry_run": dry_run, **asdict(report)})
    else:
        verb = "would be removed" if dry_run else "removed"
        details = (
            ""
            if dry_run
            else f", {report.finished} finished, {report.remains} remains of crashes cleared"
        )
        passed_over = report.failed + report.skipped
        failed = f", {passed_over} passed over (the log says why)" if passed_over else ""
        write_line(f"{report.seen} uploads seen: {report.expired} {verb}{details}{failed}")
    return 1 if report.failed or report.held else 0
