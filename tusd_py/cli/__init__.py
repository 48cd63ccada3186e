"""The command `tusd-py`: its start and its exit codes. `app` has the list of subcommands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tusd_py import __version__

_EXIT_INTERRUPTED = 130
_EXIT_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tusd-py`, by default with the arguments of the process, and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        # A closed pipe has to be noticed here, as Python would report it at exit.
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does. Python must not flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_BROKEN_PIPE


def _run(arguments: list[str]) -> int:
    if arguments[:1] in (["--version"], ["-V"], ["version"]):
        sys.stdout.write(f"tusd-py {__version__}\n")
        return 0

    # click takes a third of the time of the rest.
    from tusd_py.cli.app import run  # noqa: PLC0415

    return run(arguments)
