"""Uploads as commands list them: rows with sizes that people read, filtered, sorted, coloured, fitted to a terminal."""

from __future__ import annotations

import os
import select
import shutil
import sys
import termios
import time
import tty
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from tusd_py.cli.output import (
    CommandFailed,
    Palette,
    format_age,
    format_bytes,
    format_share,
    printable,
    write_json,
    write_line,
)

STATES = ("unfinished", "uploading", "waiting", "finished", "part", "expired")
"""States to list; unfinished ones are uploading or waiting."""
_HEADINGS = ("UPLOAD", "STATE", "DONE", "SIZE", "AGE", "OWNER", "NAME")
_WIDTHS = (32, 9, 4, 8, 4, 12, 0)
_SHORT_ID = 10
_WIDE = 120
"""Characters of a terminal on which ids are shown whole beside rates."""
_LEFT = (0, 1, 5, 6)
"""Columns whose text is to the left; numbers are to the right."""
_COLOURS = {"finished": "green", "uploading": "cyan", "waiting": "yellow", "expired": "red"}


@dataclass(frozen=True, slots=True)
class Row:
    """An upload in a list. document: what JSON tells of it. Times are in seconds since the epoch, sizes in bytes."""

    id: str
    state: str
    offset: int
    size: int | None
    created: float
    changed: float
    owner: str
    name: str
    document: Mapping[str, object]


Key = tuple[float | str, ...]
T = TypeVar("T")

SORTS: Mapping[str, Callable[[Row], Key]] = {
    "newest": lambda row: (-row.created, row.id),
    "oldest": lambda row: (row.created, row.id),
    "changed": lambda row: (-row.changed, row.id),
    "size": lambda row: (-(row.size or row.offset), row.id),
    "owner": lambda row: (row.owner, -row.created, row.id),
    "name": lambda row: (row.name, row.id),
    "id": lambda row: (row.id,),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A page of the list that is asked for. after: the id of the last upload of the page before; empty for the first page."""

    limit: int
    after: str
    state: str | None
    owner: str | None
    sort: str
    search: str

    def has(self, row: Row) -> bool:
        """Whether an upload is in the list."""
        states = (
            ("uploading", "waiting") if self.state == "unfinished" else (self.state or row.state,)
        )
        return row.state in states and self.owner in (None, row.owner)


class Smallest(Generic[T]):
    """The smallest of many items by a key, those larger than `after`, in memory for no more than twice as many."""

    def __init__(self, limit: int, key: Callable[[T], Key], *, after: Key | None) -> None:
        self._limit = limit
        self._key = key
        self._after = after
        self._items: list[T] = []

    def add(self, item: T) -> None:
        """Consider an item."""
        if self._after is None or self._key(item) > self._after:
            self._items.append(item)
            if len(self._items) >= 2 * self._limit:
                self._items = self.found()

    def found(self) -> list[T]:
        """The smallest items so far, in order."""
        return sorted(self._items, key=self._key)[: self._limit]


def table(
    rows: Iterable[Row],
    palette: Palette,
    width: int | None,
    rates: Mapping[str, float] | None = None,
) -> list[str]:
    """Return the lines of a table with its heading.

    Args:
        rows: The uploads.
        palette: Colours.
        width: Characters of the terminal, beyond which lines are cut; None for no limit.
        rates: Bytes a second by id, for a further column; None for none.
    """
    # With rates there is no space for whole ids on most terminals.
    short = rates is not None and width is not None and width < _WIDE
    lines = [_line(_HEADINGS, width, "RATE" if rates is not None else None, short=short)]
    lines[0] = palette.paint(lines[0], "bold")
    for row in rows:
        rate = None
        if rates is not None:
            rate = f"{format_bytes(rates[row.id])}/s" if rates.get(row.id) else "-"
        line = _line(_cells(row), width, rate, short=short)
        lines.append(palette.paint_word(line, row.state, _COLOURS.get(row.state)))
    return lines


def write_list(rows: Sequence[Row], palette: Palette, *, as_json: bool) -> None:
    """Print a page of the list."""
    if as_json:
        for row in rows:
            write_json(row.document)
    elif rows:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in table(rows, palette, width):
            write_line(line)


# --- watch ----------------------------------------------------------------------------------------

_INTERVAL_SECONDS = 1.0
_REST = 4
"""How much longer than it took to read the list the next reading waits."""


def watch(read: Callable[[], Sequence[Row]], palette: Palette) -> int:
    """Show the list on the terminal, again and again, until the user presses q or Ctrl-C."""
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise CommandFailed("watch needs a terminal; list prints the list once")
    before: dict[str, tuple[int, float]] = {}
    with _single_keys():
        sys.stdout.write("\x1b[?1049h\x1b[?25l")
        try:
            while True:
                began = time.monotonic()
                rows = read()
                now = time.monotonic()
                rates = {
                    row.id: (row.offset - before[row.id][0]) / (now - before[row.id][1])
                    for row in rows
                    if row.id in before and row.offset > before[row.id][0]
                }
                before = {row.id: (row.offset, now) for row in rows}
                _draw(rows, rates, palette)
                pause = max(_INTERVAL_SECONDS, _REST * (now - began))
                if _pressed_q(pause):
                    return 0
        except KeyboardInterrupt:
            return 0
        finally:
            sys.stdout.write("\x1b[?25h\x1b[?1049l")
            sys.stdout.flush()


def _draw(rows: Sequence[Row], rates: Mapping[str, float], palette: Palette) -> None:
    size = shutil.get_terminal_size()
    counts = Counter(row.state for row in rows)
    states = ", ".join(f"{number} {state}" for state, number in counts.items()) or "no uploads"
    head = f"{states}  {format_bytes(sum(rates.values()))}/s  (q to end)"[: size.columns]
    lines = [head, "", *table(rows[: max(0, size.lines - 3)], palette, size.columns, rates)]
    # What is left of longer lines and of more of them is cleared, without a blink.
    sys.stdout.write("\x1b[H" + "\x1b[K\r\n".join(lines) + "\x1b[K\x1b[J")
    sys.stdout.flush()


def _pressed_q(seconds: float) -> bool:
    """Wait, and return whether q was pressed meanwhile."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            key = os.read(sys.stdin.fileno(), 1)
            if key in (b"q", b"Q", b"\x04", b""):
                return True
    return False


@contextmanager
def _single_keys() -> Iterator[None]:
    """Read keys without waiting for a line, and show none."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


# --- lines ----------------------------------------------------------------------------------------


def _cells(row: Row) -> tuple[str, ...]:
    share = "-" if row.size is None else format_share(row.offset, row.size)
    return (
        printable(row.id),
        row.state,
        share,
        format_bytes(row.offset if row.size is None else row.size),
        format_age(time.time() - row.changed),
        printable(row.owner) or "-",
        printable(row.name),
    )


def _line(cells: Sequence[str], width: int | None, rate: str | None, *, short: bool) -> str:
    if short:
        whole, *rest = cells
        cells = [whole if len(whole) <= _SHORT_ID else f"{whole[: _SHORT_ID - 1]}…", *rest]
    widths = (_SHORT_ID, *_WIDTHS[1:]) if short else _WIDTHS
    padded = [
        cell.ljust(least) if at in _LEFT else cell.rjust(least)
        for at, (cell, least) in enumerate(zip(cells, widths, strict=True))
    ]
    if rate is not None:
        padded.insert(4, rate.rjust(10))
    line = "  ".join(padded).rstrip()
    return line if width is None or len(line) <= width else f"{line[: width - 1]}…"
