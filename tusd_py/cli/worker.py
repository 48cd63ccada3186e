"""`tusd-py worker`: does the jobs beside the server."""

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
Do the jobs that run beside the server, until told to stop: SIGTERM ends it after the job in hand. Give it the same options as \
the server. Any number of workers may run, on any machine that reaches the uploads and the Redis.

tusd-py serve runs one itself unless it is given a --redis-url (see --jobs).
"""

_MOST = 64


def add_arguments(parser: Parser) -> None:
    """What to do, and all settings."""
    parser.option(
        "--queue",
        "Take jobs from this queue only; may be repeated, the most urgent first. There are: expiry, delivery.",
        section="Worker",
        metavar="NAME",
        action="append",
    )
    parser.option(
        "--concurrency",
        "Jobs at the same time, each in a process of its own.",
        section="Worker",
        metavar="NUMBER",
        note="default 1",
    )
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Work; returns the exit code."""
    given = vars(arguments)
    settings = load_arguments(arguments, os.environ).settings

    # rq and the server's parts: not needed to find out that a flag is wrong.
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
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= _MOST:
        raise UsageError(f"--concurrency {json.dumps(text)}: give a whole number from 1 to {_MOST}")
    return int(text)
