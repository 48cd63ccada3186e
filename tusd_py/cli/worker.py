"""`tusd-py worker`: runs background jobs."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys

from tusd_py import logs
from tusd_py.settings.commandline import Parser, UsageError, suggestion
from tusd_py.settings.load import add_flags, load_arguments

USAGE = "[--queue NAME]... [--concurrency N] [options of serve]"
ABOUT = """\
Run background jobs (sweeps and event deliveries) until stopped: SIGTERM ends it after the current job. Give it the same \
options as the server. Any number of workers may run, on any machine with access to the uploads and to Redis.

tusd-py serve runs one itself unless it is given a --redis-url (see --jobs).
"""

_MAX_CONCURRENCY = 64


def add_arguments(parser: Parser) -> None:
    """Declare the queues, the concurrency and all settings."""
    parser.option(
        "--queue",
        "Queue to take jobs from: expiry or delivery. Repeat it for several, the most urgent first. Default: all.",
        section="Worker",
        metavar="NAME",
        action="append",
    )
    parser.option(
        "--concurrency",
        "Number of jobs that run at the same time, each in its own process.",
        section="Worker",
        metavar="NUMBER",
        note="default 1",
    )
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the worker and return the exit code."""
    given = vars(arguments)
    settings = load_arguments(arguments, os.environ).settings

    # Imported here, so that a wrong flag is reported without loading rq.
    from tusd_py.jobs.queues import QUEUES  # noqa: PLC0415
    from tusd_py.redis.embedded.server import EmbeddedRedisError  # noqa: PLC0415
    from tusd_workers import worker  # noqa: PLC0415

    queues = _queues(given.get("queue") or [], QUEUES)
    concurrency = _concurrency(given.get("concurrency") or "1")
    logs.configure(settings.log_format, settings.log_level)
    try:
        return worker.run(settings, queues, concurrency=concurrency)
    except EmbeddedRedisError as problem:
        sys.stderr.write(f"tusd-py worker: {problem}\n")
        return 1


def _queues(given: list[str], known: tuple[str, ...]) -> list[str]:
    for name in given:
        if name not in known:
            raise UsageError(
                f"--queue {json.dumps(name)}: there are {' and '.join(known)}{suggestion(name, known)}"
            )
    return list(dict.fromkeys(given)) or list(known)


def _concurrency(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= _MAX_CONCURRENCY:
        raise UsageError(
            f"--concurrency {json.dumps(text)}: give a whole number from 1 to {_MAX_CONCURRENCY}"
        )
    return int(text)
