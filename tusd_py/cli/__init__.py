"""The command `tusd-py`: dispatches to the subcommand, reports usage errors and returns the exit code.

Every subcommand is a module of this package with `USAGE`, `ABOUT`, `add_arguments` and `run`, and a line in `COMMANDS`. Only
the module of the given command is imported, which keeps the start fast.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from tusd_py import __version__
from tusd_py.settings.commandline import Parser, UsageError, suggestion

PROGRAM = "tusd-py"

COMMANDS = {
    "serve": "Run the server.",
    "config": "Print the effective settings and where each comes from.",
    "uploads": "Print or remove uploads.",
    "sweep": "Remove expired uploads now, or list them.",
    "worker": "Run background jobs: sweeps and event deliveries.",
    "scheduler": "Queue the periodic jobs of workers.",
    "events": "Print undelivered events, and retry or drop failed ones.",
    "status": "Print the state of sweeps, queues, workers and the scheduler.",
    "health": "Check one process, for health checks of containers.",
    "adopt": "Convert a directory of tusd or tuspyserver, or convert it back.",
    "duplicates": "Print or remove the fingerprints that detect duplicates.",
    "keys": "Generate a secret for signing tokens.",
    "token": "Issue, inspect and revoke tokens.",
}

EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130
_EXIT_BROKEN_PIPE = 141


class Command(Protocol):
    """The interface of a subcommand's module."""

    USAGE: str
    """Arguments, as shown in the first line of its help."""
    ABOUT: str
    """Text of its help above the options."""

    def add_arguments(self, parser: Parser) -> None:
        """Declare arguments and options."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command and return the exit code. Raises UsageError for wrong arguments."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tusd-py`, by default with the arguments of the process, and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    try:
        return _run(command, arguments[1:]) if command else _without_command(arguments)
    except UsageError as error:
        _report(f"{PROGRAM} {command}".rstrip(), error)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does. Python must not flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_BROKEN_PIPE


def _run(name: str, arguments: Sequence[str]) -> int:
    command = cast(Command, import_module(f"{__name__}.{name}"))
    parser = Parser(f"{PROGRAM} {name}", command.USAGE, command.ABOUT)
    command.add_arguments(parser)
    if {"-h", "--help"} & set(arguments):
        return _print(parser.format_help())
    return command.run(parser.read(arguments))


def _without_command(arguments: Sequence[str]) -> int:
    first, *rest = arguments or ["help"]
    if first in ("--version", "-V", "version"):
        return _print(f"{PROGRAM} {__version__}\n")
    if first in ("help", "-h", "--help"):
        if rest and rest[0] in COMMANDS:
            return _run(rest[0], ["--help"])
        if not rest:
            return _print(_overview())
        first = rest[0]
    known = [*COMMANDS, "--version", "--help"]
    kind = "option" if first.startswith("-") else "command"
    raise UsageError(f'unknown {kind} "{first}"{suggestion(first, known)}')


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    return f"""\
Usage: {PROGRAM} COMMAND [options]

A resumable upload server: tus 1.0.0 with every extension.

{commands}

  {PROGRAM} COMMAND --help    options of a command
  {PROGRAM} --version         version of this installation

{PROGRAM} serve needs no options: it accepts uploads at http://127.0.0.1:8080/files/
and stores them in ./data.
"""


def _report(program: str, error: UsageError) -> None:
    lines = [f"{program}: {problem}" for problem in error.problems]
    if sys.stderr.isatty():
        lines.append(f"Try {program} --help")
    sys.stderr.write("\n".join(lines) + "\n")


def _print(text: str) -> int:
    sys.stdout.write(text)
    sys.stdout.flush()
    return 0
