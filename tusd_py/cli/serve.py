"""`tusd-py serve`: runs the server."""

from __future__ import annotations

import logging

from tusd_py import logs
from tusd_py.cli.options import SERVER, read_settings, subcommand

ABOUT = """\
Run the server. It needs no options: it accepts uploads at http://127.0.0.1:8080/files/ and stores
them in ./data.

Every option can also be given as an environment variable, whose name is in brackets, or in a TOML
file, as max_size for --max-size. The command line overrides the environment, and the environment
overrides the file.

A SIZE is in bytes, or has a unit: 500kB, 10MB (1000s), 512KiB, 1GiB (1024s). A DURATION is in
seconds, or has units: 500ms, 20m, 1h30m, 7d. Relative paths are relative to the working directory.
"""

_log = logging.getLogger(__name__)


@subcommand("[options]", ABOUT, settings=SERVER)
def command() -> int:
    """Serve until stopped by a signal and return the exit code."""
    loaded = read_settings()
    logs.configure(loaded.settings.log_format, loaded.settings.log_level)
    for warning in loaded.warnings:
        logs.event(_log, logging.WARNING, "settings", message=warning)

    # Imported here, so that a wrong flag is reported without loading the server.
    from tusd_py.process.server import run as serve  # noqa: PLC0415

    return serve(loaded.settings, loaded.origins)
