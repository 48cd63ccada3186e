"""The time of the last sweep, and since when sweeps are held: the mtimes of two files beside the uploads.

By this process's clock, not the file system's, because the former decides what is due.
"""

from __future__ import annotations

import os
from contextlib import suppress


class SweepMarks:
    """The marks in `directory`. A mark that cannot be read or written counts as missing."""

    def __init__(self, directory: str, *, file_perms: int) -> None:
        self._swept = f"{directory}/swept"
        self._held = f"{directory}/sweep-held"
        self._file_perms = file_perms

    def last(self) -> float | None:
        """Return when the last sweep that was not held ended, in seconds since the epoch."""
        return _time_of(self._swept)

    def held_since(self) -> float | None:
        """Return when a sweep was first held since then."""
        return _time_of(self._held)

    def record_end(self, now: float) -> None:
        """Record the end of a sweep."""
        self._mark(self._swept, now)
        with suppress(OSError):
            os.unlink(self._held)

    def record_hold(self, now: float) -> None:
        """Record that a sweep is held."""
        self._mark(self._held, now)

    def _mark(self, path: str, now: float) -> None:
        with suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, self._file_perms))
            os.utime(path, (now, now))


def _time_of(path: str) -> float | None:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return None
