"""An argparse parser with readable help and errors, used by every command. Mistakes of the user are raised as `UsageError`."""

from __future__ import annotations

import argparse
import difflib
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

MAX_WIDTH = 100
_COLUMN = 33


class UsageError(Exception):
    """Wrong arguments or settings; each problem is a line. Exit code 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Option:
    """One flag in help."""

    names: str
    meaning: str
    note: str = ""
    """Text in brackets after the meaning, such as the default."""


@dataclass
class Section:
    """Options under a heading."""

    title: str
    options: list[Option] = field(default_factory=list)


class Parser(argparse.ArgumentParser):
    """Parses the arguments of one command, including `-h` and `--help`."""

    def __init__(self, prog: str, usage: str, about: str) -> None:
        """`usage` is what follows the program's name; `about` is text in paragraphs."""
        super().__init__(
            prog=prog, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
        )
        self._usage = usage
        self._about = about
        self._sections: list[Section] = []
        self._flags: set[str] = set()
        self._general = Section("General", [Option("-h, --help", "Show this help.")])
        self.add_argument("-h", "--help", action="store_true")

    def option(
        self,
        flag: str,
        meaning: str,
        *,
        section: str = "",
        metavar: str = "",
        note: str = "",
        dest: str | None = None,
        bare: str | None = None,
        action: Literal["store", "append", "store_true"] = "store",
    ) -> None:
        """Add a flag. If it is not given, the result has no attribute for it.

        bare: value of the flag if it is given without one. note: text in brackets in help.
        """
        dest = dest or flag.lstrip("-").replace("-", "_")
        self._flags.add(flag)
        if action == "store_true":
            self.add_argument(flag, dest=dest, action=action)
        elif bare is not None:
            self.add_argument(flag, dest=dest, action=action, nargs="?", const=bare)
        else:
            self.add_argument(flag, dest=dest, action=action)
        shown = Option(f"{flag} {metavar}".rstrip(), meaning, note)
        self._section(section).options.append(shown)

    def _section(self, title: str) -> Section:
        if not title:
            return self._general
        for section in self._sections:
            if section.title == title:
                return section
        self._sections.append(Section(title))
        return self._sections[-1]

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The arguments' values; raises UsageError.

        A flag may also be written with one dash ("-port"), as tusd's documentation does.
        """
        doubled = [
            f"-{each}" if f"-{each}".split("=", 1)[0] in self._flags else each for each in arguments
        ]
        # Flags may come between the words of a command.
        namespace, rest = self.parse_known_intermixed_args(doubled)
        for argument in rest:
            self.error(self._unknown(argument))
        return namespace

    def _unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f'unexpected argument "{argument}"'
        flag = argument.split("=", 1)[0]
        return f"unknown option {flag}{suggestion(flag, self._flags)}"

    def error(self, message: str) -> NoReturn:
        """Raise UsageError; argparse calls this for a mistake."""
        message = message.removeprefix("argument ")
        raise UsageError(message.replace(": expected one argument", " needs a value"))

    def format_help(self) -> str:
        """The help text, as wide as the terminal but no wider than 100 columns."""
        width = min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns)
        blocks = [f"Usage: {self.prog} {self._usage}"]
        blocks += ["\n".join(_wrap(paragraph, width)) for paragraph in self._about.split("\n\n")]
        blocks += [_format(section, width) for section in [*self._sections, self._general]]
        return "\n\n".join(blocks) + "\n"


def _format(section: Section, width: int) -> str:
    return "\n".join(
        [section.title, *(_format_option(option, width) for option in section.options)]
    )


def _format_option(option: Option, width: int) -> str:
    # A terminal too narrow for two columns gets the meaning below the flag.
    column = _COLUMN if width >= 2 * _COLUMN else 6
    lines = _wrap(option.meaning, max(width - column, 20))
    if option.note:
        note = f"[{option.note}]"
        if len(lines[-1]) + 1 + len(note) <= width - column:
            lines[-1] += f" {note}"
        else:
            lines.append(note)
    body = [" " * column + line for line in lines]
    head = f"  {option.names}"
    if len(head) + 2 <= column:
        body[0] = head.ljust(column) + lines[0]
    else:
        body.insert(0, head)
    return "\n".join(body)


def _wrap(text: str, width: int) -> list[str]:
    # Do not break lines at the hyphens of flags and header names.
    return textwrap.wrap(text, width, break_on_hyphens=False)


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" where one of the known words is close, else ""."""
    close = difflib.get_close_matches(wrong, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
