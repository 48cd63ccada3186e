"""`tusd-py scheduler`: queues the periodic jobs of workers."""

from __future__ import annotations

from tusd_py import logs
from tusd_py.cli.instance import check_worker
from tusd_py.cli.options import read_settings, subcommand

ABOUT = """\
Queue the periodic jobs of workers until stopped by a signal. Give it the same options as the server. One scheduler is
enough; additional ones are standbys.

tusd-py serve runs one itself unless it is given a --redis-url (see --jobs).
"""


@subcommand("[options of serve]", ABOUT)
def command() -> int:
    """Run the scheduler and return the exit code."""
    settings = read_settings().settings
    check_worker(settings)

    # Imported here, so that a wrong flag is reported without loading rq.
    from tusd_workers import scheduler  # noqa: PLC0415

    logs.configure(settings.log_format, settings.log_level)
    return scheduler.run(settings)
