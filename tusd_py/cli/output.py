"""Everything that commands print: tables, fields, JSON, times, problems and progress."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Generic, TypeVar

T = TypeVar("T")

Document = Mapping[str, object]


class _Program:
    name = "tusd-py"


program = _Program()
"""The running command, as problems name it; click knows it in one thread only."""

_BAR_WIDTH = 30
_REDRAW_SECONDS = 0.1


class CommandFailed(Exception):
    """The command cannot go on; the text says why. Exit code 1."""


def write_line(text: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(text + "\n")


def write_problem(text: str) -> None:
    """Write a line about a problem, with the name of the command, to standard error. Any thread may call it."""
    sys.stderr.write(f"{program.name}: {text}\n")


def write_json(document: Document, *, indent: int | None = None) -> None:
    """Write an object as JSON: on one line, or indented by so many blanks."""
    write_line(json.dumps(document, indent=indent))


def write_row(cells: Sequence[str], widths: Sequence[int]) -> None:
    """Write a row of a table, each cell padded to its column's width."""
    padded = (f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))
    write_line("  ".join(padded).rstrip())


def write_rows(rows: Sequence[Sequence[str]], *, wide: int) -> None:
    """Write a table whose columns are as wide as their widest cell of at most `wide` characters."""
    columns = zip(*rows, strict=True)
    widths = [
        max((len(cell) for cell in column if len(cell) <= wide), default=0) for column in columns
    ]
    for row in rows:
        write_row(row, widths)


def write_record(document: Document, *, as_json: bool, is_first: bool) -> None:
    """Write an object as JSON, or as a field a line below a blank line unless it is the first one."""
    if as_json:
        write_json(document)
        return
    if not is_first:
        write_line("")
    for name, value in document.items():
        text = value if isinstance(value, str) else json.dumps(value)
        write_line(f"{name:10}  {printable(text)}")


def write_either(document: Document, text: str, *, as_json: bool) -> None:
    """Write an object as JSON, or a line that says the same."""
    if as_json:
        write_json(document)
    else:
        write_line(text)


class Listing(Generic[T]):
    """Prints items as they come, as rows under a heading or as JSON objects, one a line.

    Args:
        columns: width of each column by its heading, in characters.
        cells: returns the row of an item.
        document: returns the JSON object of an item.
        as_json: print JSON instead of a table.
    """

    def __init__(
        self,
        columns: Mapping[str, int],
        *,
        cells: Callable[[T], Sequence[str]],
        document: Callable[[T], Document],
        as_json: bool,
    ) -> None:
        self.count = 0
        self._columns = columns
        self._cells = cells
        self._document = document
        self._as_json = as_json

    def write(self, item: T) -> None:
        """Print an item, the first one under the heading."""
        if self._as_json:
            write_json(self._document(item))
        else:
            widths = tuple(self._columns.values())
            if self.count == 0:
                write_row(tuple(self._columns), widths)
            write_row(self._cells(item), widths)
        self.count += 1


def format_time(seconds: float) -> str:
    """Format a time (seconds since the epoch) as ISO 8601 in UTC, to the second."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        # The times of files may lie beyond the calendar.
        return f"{seconds:.0f}"


def format_age(seconds: float) -> str:
    """Format an age in its largest unit, as in "3d" or "12m"."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def format_bytes(count: float) -> str:
    """Format a number of bytes with three digits at most, as in "512 B" or "1.25 GB"."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        count /= 1000
        if count < 999.5 or unit == "PB":
            digits = 2 if count < 9.995 else 1 if count < 99.95 else 0
            return f"{count:.{digits}f} {unit}"
    raise AssertionError


def format_share(done: int, total: int) -> str:
    """Format a part of a whole in per cent: 100 % only for all of it."""
    return f"{100 * done // total if total else 100}%"


def count_of(number: int, noun: str) -> str:
    """Write a number of things: "1 event", "2 events"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """Escape control characters, which could draw on the operator's terminal."""
    return text if text.isprintable() else json.dumps(text)[1:-1]


_CODES = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Palette:
    """Colours of standard output: those of a terminal, unless NO_COLOR is set (no-color.org) or the user says otherwise."""

    def __init__(self, choice: str | None = None) -> None:
        wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._is_on = choice == "always" or (
            choice != "never" and wanted and os.environ.get("TERM") != "dumb"
        )

    def paint(self, text: str, colour: str | None) -> str:
        """Return a text in a colour; None for none."""
        return f"\x1b[{_CODES[colour]}m{text}\x1b[m" if self._is_on and colour else text

    def paint_word(self, line: str, word: str, colour: str | None) -> str:
        """Return a line in which a word that stands by itself, at its first place, has a colour."""
        begin = line.find(f" {word}") + 1
        if not begin:
            return line
        return line[:begin] + self.paint(word, colour) + line[begin + len(word) :]


def draw(text: str) -> None:
    """Draw over the line of the cursor on standard error, if that is a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text}\x1b[K")
        sys.stderr.flush()


def clear_line() -> None:
    """Remove what is drawn in the line of the cursor."""
    draw("")


class Progress:
    """Draws how much is done: as a bar if there is a total, or as a number of things."""

    def __init__(self, things: str = "", total: int | None = None) -> None:
        self._things = things
        self._total = total
        self._done = 0
        self._drawn_at = time.monotonic()
        if total is not None:
            self._draw()

    def add(self, more: int) -> None:
        """Count more, and draw unless that was done a moment ago."""
        self._done += more
        is_last = self._total is not None and self._done >= self._total
        if is_last or time.monotonic() - self._drawn_at >= _REDRAW_SECONDS:
            self._draw()

    def clear(self) -> None:
        """Remove it, so that a line can be printed in its place; it is drawn again when more is done."""
        clear_line()
        self._drawn_at = 0.0

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        if self._total is None:
            draw(f"{self._done} {self._things}")
            return
        share = self._done / self._total if self._total else 1.0
        bar = "#" * round(min(share, 1.0) * _BAR_WIDTH)
        draw(f"[{bar:.<{_BAR_WIDTH}}] {self._done}/{self._total}")
