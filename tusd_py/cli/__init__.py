"""The command `tusd-py`: finds the subcommand, reports the user's mistakes, gives the exit code.

Every subcommand is a module of this package with `USAGE`, `ABOUT`, `add_arguments` and `run`; a new
one is a line in `COMMANDS`. Only the module of the command that was asked for is imported, so that
the others cost nothing.
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
    "config": "Print the settings in force, and where each comes from.",
    "uploads": "Print or remove uploads.",
    "sweep": "Remove what has expired now, or show what would go.",
    "worker": "Do the jobs that run beside the server.",
    "scheduler": "Put the jobs of workers into their queues when it is time.",
    "events": "Print what hooks are still to be told of, and have told again what was given up.",
    "status": "Print whether workers and the scheduler do what they should.",
    "health": "Find out whether a process does its work, for containers.",
    "adopt": "Take over what another server has kept in a directory, or give it back.",
    "duplicates": "Print or forget what is remembered of uploads to find duplicates.",
    "keys": "Make a secret for tokens.",
    "token": "Issue, look into and revoke tokens.",
}

EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130
_EXIT_BROKEN_PIPE = 141


class Command(Protocol):
    """What the module of a subcommand has."""

    USAGE: str
    """What follows the command in the first line of its help."""
    ABOUT: str
    """The text of its help before the options."""

    def add_arguments(self, parser: Parser) -> None:
        """Declare what the command takes."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; returns the exit code. Raises UsageError for what the user has to mend."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tusd-py`, by default with the arguments of the process; returns the exit code."""
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
        # Whoever read the output has seen enough, as `head` does. What is left must not be written
        # at exit.
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

  {PROGRAM} COMMAND --help    what a command takes
  {PROGRAM} --version         which version this is

{PROGRAM} serve needs no options: it keeps uploads in ./data and takes them at
http://127.0.0.1:8080/files/
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
