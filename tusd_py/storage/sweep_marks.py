"""When the last sweep ended and since when one is held, as the times of two files beside the uploads.

By this process's clock and not the file system's, as it is the former that decides what is due. Not for: what is decided of it.
"""

from __future__ import annotations

import os
from contextlib import suppress


class SweepMarks:
    """The marks in `directory`. What cannot be read or written is not known."""

    def __init__(self, directory: str, *, file_perms: int) -> None:
        self._swept = f"{directory}/swept"
        self._held = f"{directory}/sweep-held"
        self._file_perms = file_perms

    def last(self) -> float | None:
        """When the last sweep ended that was not held, in seconds since the epoch."""
        return _time_of(self._swept)

    def held_since(self) -> float | None:
        """When a sweep was held first since then."""
        return _time_of(self._held)

    def record_end(self, now: float) -> None:
        """A sweep ended."""
        self._mark(self._swept, now)
        with suppress(OSError):
            os.unlink(self._held)

    def record_hold(self, now: float) -> None:
        """A sweep is held from now on."""
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
