"""`tusd-py scheduler`: puts the jobs of workers into their queues when it is time."""

from __future__ import annotations

import argparse
import os
import sys

from tusd_py import logs
from tusd_py.settings.commandline import Parser
from tusd_py.settings.load import add_flags, load_arguments

USAGE = "[options of serve]"
ABOUT = """\
Put jobs into the queues of workers when it is time, until told to stop. Give it the same options as the server. \
One is enough; of several, each can do without the others.

tusd-py serve runs one itself unless it is given a --redis-url (see --jobs).
"""


def add_arguments(parser: Parser) -> None:
    """All settings."""
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Schedule; returns the exit code."""
    settings = load_arguments(arguments, os.environ).settings

    # rq and the server's parts: not needed to find out that a flag is wrong.
    from tusd_py.redis.embedded.server import EmbeddedRedisError  # noqa: PLC0415
    from tusd_workers import scheduler  # noqa: PLC0415

    logs.configure(settings.log_format, settings.log_level)
    try:
        return scheduler.run(settings)
    except EmbeddedRedisError as problem:
        sys.stderr.write(f"tusd-py scheduler: {problem}\n")
        return 1
