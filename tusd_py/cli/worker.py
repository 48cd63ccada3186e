"""`tusd-py worker`: runs background jobs."""

from __future__ import annotations

from tusd_py import logs
from tusd_py.cli.instance import check_worker
from tusd_py.cli.options import Value, option, read_settings, subcommand, whole
from tusd_py.jobs.queues import QUEUES
from tusd_py.settings.suggestion import suggestion

ABOUT = """\
Run background jobs (sweeps and event deliveries) until stopped: SIGTERM ends it after the current job. Give it the same
options as the server. Any number of workers may run, on any machine with access to the uploads and to Redis.

tusd-py serve runs one itself unless it is given a --redis-url (see --jobs).
"""


def _queue(name: str) -> str:
    if name not in QUEUES:
        raise ValueError(f"there are {' and '.join(QUEUES)}{suggestion(name, QUEUES)}")
    return name


@subcommand("[--queue NAME]... [--concurrency N] [options of serve]", ABOUT)
@option(
    "--queue",
    f"Queue to take jobs from: {' or '.join(QUEUES)}. Repeat it for several, the most urgent first. Default: all.",
    section="Worker",
    type=Value("NAME", _queue),
    many=True,
)
@option(
    "--concurrency",
    "Number of jobs that run at the same time, each in its own process.",
    section="Worker",
    type=whole(1, 64),
    note="default 1",
)
def command(queue: tuple[str, ...], concurrency: int | None) -> int:
    """Run the worker and return the exit code."""
    settings = read_settings().settings
    check_worker(settings)

    # Imported here, so that a wrong flag is reported without loading rq.
    from tusd_workers import worker  # noqa: PLC0415

    logs.configure(settings.log_format, settings.log_level)
    queues = list(dict.fromkeys(queue)) or list(QUEUES)
    return worker.run(settings, queues, concurrency=concurrency or 1)
