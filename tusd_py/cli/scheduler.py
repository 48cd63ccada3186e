"""`tusd-py scheduler`: queues the periodic jobs of workers."""

from __future__ import annotations

import argparse
import os
import sys

from tusd_py import logs
from tusd_py.settings.commandline import Parser
from tusd_py.settings.load import add_flags, load_arguments

USAGE = "[options of serve]"
ABOUT = """\
Queue the periodic jobs of workers until stopped by a signal. Give it the same options as the server. One scheduler is \
enough; additional ones are standbys.

tusd-py serve runs one itself unless it is given a --redis-url (see --jobs).
"""


def add_arguments(parser: Parser) -> None:
    """Declare all settings."""
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the scheduler and return the exit code."""
    settings = load_arguments(arguments, os.environ).settings

    # Imported here, so that a wrong flag is reported without loading rq.
    from tusd_py.redis.embedded.server import EmbeddedRedisError  # noqa: PLC0415
    from tusd_workers import scheduler  # noqa: PLC0415

    logs.configure(settings.log_format, settings.log_level)
    try:
        return scheduler.run(settings)
    except EmbeddedRedisError as problem:
        sys.stderr.write(f"tusd-py scheduler: {problem}\n")
        return 1
