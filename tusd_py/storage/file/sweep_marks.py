"""The time of the last sweep, and since when sweeps are held: the mtimes of two files beside the uploads.

By this process's clock, not the file system's, because the former decides what is due.
"""

from __future__ import annotations

import os
from contextlib import suppress

from tusd_py.storage.base import SweepTimes
from tusd_py.storage.file.executor import Threads


class FileSweepMarks:
    """See `SweepMarks`. directory: has the marks."""

    def __init__(self, directory: str, *, threads: Threads, file_perms: int) -> None:
        self._swept = f"{directory}/swept"
        self._held = f"{directory}/sweep-held"
        self._threads = threads
        self._file_perms = file_perms

    async def read(self) -> SweepTimes:
        return await self._threads.run(self._read)

    def _read(self) -> SweepTimes:
        return SweepTimes(_time_of(self._swept), _time_of(self._held))

    async def record_end(self, now: float) -> None:
        await self._threads.run(self._record_end, now)

    def _record_end(self, now: float) -> None:
        self._mark(self._swept, now)
        with suppress(OSError):
            os.unlink(self._held)

    async def record_hold(self, now: float) -> None:
        await self._threads.run(self._mark, self._held, now)

    def _mark(self, path: str, now: float) -> None:
        with suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, self._file_perms))
            os.utime(path, (now, now))


def _time_of(path: str) -> float | None:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return None
