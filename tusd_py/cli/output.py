"""What all commands print alike: listings as tables or JSON lines, times, and a progress bar."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Generic, TypeVar

T = TypeVar("T")

_BAR_WIDTH = 30
_REDRAW_SECONDS = 0.1


def write_line(text: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(text + "\n")


def write_json(document: Mapping[str, object], *, indent: int | None = None) -> None:
    """Write an object as JSON: on one line, or indented by so many blanks."""
    write_line(json.dumps(document, indent=indent))


def write_row(cells: Sequence[str], widths: Sequence[int]) -> None:
    """Write a row of a table, each cell padded to its column's width."""
    padded = (f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))
    write_line("  ".join(padded).rstrip())


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
        document: Callable[[T], Mapping[str, object]],
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


def printable(text: str) -> str:
    """Escape control characters, which could draw on the operator's terminal."""
    return text if text.isprintable() else json.dumps(text)[1:-1]


class ProgressBar:
    """Draws a bar on standard error if that is a terminal; nothing otherwise."""

    def __init__(self, total: int) -> None:
        self._is_shown = sys.stderr.isatty()
        self._total = total
        self._drawn_at = 0.0
        self.update(0)

    def update(self, done: int) -> None:
        """Draw the bar with so many of the total done, unless it was drawn a moment ago."""
        now = time.monotonic()
        if not self._is_shown or (now - self._drawn_at < _REDRAW_SECONDS and done < self._total):
            return
        self._drawn_at = now
        share = done / self._total if self._total else 1.0
        bar = "#" * round(min(share, 1.0) * _BAR_WIDTH)
        sys.stderr.write(f"\r[{bar:.<{_BAR_WIDTH}}] {done}/{self._total}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Remove the bar, so that a line can be printed in its place; the next update draws it again."""
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._drawn_at = 0.0
