"""The group of all subcommands: dispatch, completion, and a line for each mistake of the user or failure of the system.

A subcommand is a module of this package with a `command`, and a line in `COMMANDS`. Only the module of the given subcommand is
imported, which keeps the start fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module

import click
from click.shell_completion import CompletionItem, shell_complete

from tusd_py.cli import tusd_flags
from tusd_py.cli.output import program, write_problem
from tusd_py.settings.suggestion import suggestion

PROGRAM = "tusd-py"

COMMANDS = {
    "serve": "Run the server.",
    "config": "Print the effective settings and where each comes from.",
    "uploads": "Print, watch or remove uploads.",
    "sweep": "Remove expired uploads now, or list them.",
    "worker": "Run background jobs: sweeps and event deliveries.",
    "scheduler": "Queue the periodic jobs of workers.",
    "events": "Print undelivered events, and retry or drop failed ones.",
    "status": "Print the state of sweeps, queues, workers and the scheduler.",
    "dashboard": "Print a one-time link to the operators' page.",
    "health": "Check one process, for health checks of containers.",
    "check-s3": "Try out what a bucket can do.",
    "adopt": "Take over uploads of tusd or tuspyserver, or give them back.",
    "duplicates": "Print or remove the fingerprints that detect duplicates.",
    "quotas": "Print the bytes that the uploads of each owner take.",
    "keys": "Generate a secret for signing tokens.",
    "token": "Issue, inspect and revoke tokens.",
    "completion": "Print the completion script of a shell.",
    "manual": "Print the manual page.",
}

EXIT_USAGE = 2
EXIT_FAILURE = 1
_COMPLETION_VARIABLE = "_TUSD_PY_COMPLETE"


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = import_module(f"tusd_py.cli.{cmd_name.replace('-', '_')}").command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            raise click.UsageError(f'unknown command "{args[0]}"{suggestion(args[0], COMMANDS)}')
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(_overview())

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click would import all commands for their summaries.
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=summary)
            for name, summary in COMMANDS.items()
            if name.startswith(incomplete)
        ]


_GROUP = _Commands(
    PROGRAM,
    # For the shell's completion; both are handled before click is loaded.
    params=[click.Option(["--version", "-V"], is_flag=True, expose_value=False)],
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(arguments: list[str]) -> int:
    """Run the subcommand that the arguments name and return its exit code."""
    if instruction := os.environ.get(_COMPLETION_VARIABLE):
        return shell_complete(_GROUP, {}, PROGRAM, _COMPLETION_VARIABLE, instruction)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help", *arguments[2:]]
    program.name = f"{PROGRAM} {arguments[0]}" if {*arguments[:1]} & COMMANDS.keys() else PROGRAM
    try:
        # Not `main`, which has exit codes and messages of its own.
        with _GROUP.make_context(PROGRAM, list(arguments) or ["--help"]) as context:
            code: int = _GROUP.invoke(context)
            return code
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        return _report([sentence(error, arguments)])
    except BrokenPipeError:
        raise
    except Exception as problem:
        from tusd_py.settings.load import SettingsError  # noqa: PLC0415

        if isinstance(problem, SettingsError):
            return _report(problem.problems)
        # It imports whatever can fail.
        from tusd_py.cli.failures import explain, is_refused  # noqa: PLC0415

        if (text := explain(problem)) is None:
            raise
        write_problem(text)
        return EXIT_USAGE if is_refused(problem) else EXIT_FAILURE


def _report(problems: Iterable[str]) -> int:
    """Print what is wrong with the command line or the settings, and return the exit code."""
    for problem in problems:
        write_problem(problem)
    if sys.stderr.isatty():
        sys.stderr.write(f"Try {program.name} --help\n")
    return EXIT_USAGE


def sentence(error: click.UsageError, arguments: list[str]) -> str:
    """Put click's errors about flags in the words of our own."""
    options = [
        each
        for each in (error.ctx.command.params if error.ctx is not None else ())
        if isinstance(each, click.Option)
    ]
    if isinstance(error, click.NoSuchOption):
        # Of an unknown flag with one dash click names the first letter only.
        written = (each.split("=", 1)[0] for each in arguments)
        flag = next((each for each in written if each.startswith(error.option_name)), "")
        # Those who come from tusd give what they gave it.
        if (text := tusd_flags.advice(flag)) is not None:
            return f"{flag} is a flag of tusd that does not exist here: {text}"
        known = [flag for option in options for flag in option.opts] + ["--help"]
        return f"unknown option {flag}{suggestion(flag, known)}"
    if isinstance(error, click.BadOptionUsage):
        switches = [flag for option in options if option.is_flag for flag in option.opts]
        needs = "takes no value" if error.option_name in switches else "needs a value"
        return f"{error.option_name} {needs}"
    return error.format_message()


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    return f"""\
Usage: {PROGRAM} COMMAND [options]

A resumable upload server: tus 1.0.0 with every extension, and Resumable Uploads for HTTP.

{commands}

  {PROGRAM} COMMAND --help        the usual options of a command
  {PROGRAM} COMMAND --help all    all options of a command
  {PROGRAM} --version             version of this installation

{PROGRAM} serve needs no options: uploads at http://127.0.0.1:8080/files/, stored in ./data.
"""
