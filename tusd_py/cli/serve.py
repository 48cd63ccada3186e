"""`tusd-py serve`: run the server with the settings of the command line, the environment and the
file.
"""

from __future__ import annotations

import argparse
import logging
import os

from tusd_py import logs
from tusd_py.settings.commandline import Parser
from tusd_py.settings.load import add_flags, load_arguments

USAGE = "[options]"
ABOUT = """\
Run the server. It needs no options: uploads are kept in ./data and taken at
http://127.0.0.1:8080/files/

Every option can also be given as an environment variable, the name in the brackets, or in a TOML
file, as max_size for --max-size. The command line wins over the environment, and the environment
over the file.

A SIZE is in bytes, or has a unit: 500kB, 10MB (1000s), 512KiB, 1GiB (1024s). A DURATION is in
seconds, or has units: 500ms, 20m, 1h30m, 7d. Relative paths start where the server is started.
"""

_log = logging.getLogger(__name__)


def add_arguments(parser: Parser) -> None:
    """All settings."""
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop; returns the exit code."""
    loaded = load_arguments(arguments, os.environ)
    logs.configure(loaded.settings.log_format, loaded.settings.log_level)
    for warning in loaded.warnings:
        logs.event(_log, logging.WARNING, "settings", message=warning)

    # The server and all that it stands on: not needed to find out that a flag is wrong.
    from tusd_py.process.server import run as serve  # noqa: PLC0415

    return serve(loaded.settings)
