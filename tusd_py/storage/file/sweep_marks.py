"""The time of the last sweep, and since when sweeps are held: the mtimes of two files beside the uploads.

By this process's clock, not the file system's, because the former decides what is due.
"""

from __future__ import annotations

import os
from contextlib import suppress

from tusd_py.storage.base import SweepTimes
from tusd_py.storage.file.threads import Threads


class SweepMarkFiles:
    """The marks in `directory`, as of `SweepMarks`, but blocking. One that cannot be read or written counts as missing."""

    def __init__(self, directory: str, *, file_perms: int = 0o640) -> None:
        self._swept = f"{directory}/swept"
        self._held = f"{directory}/sweep-held"
        self._file_perms = file_perms

    def read(self) -> SweepTimes:
        return SweepTimes(_time_of(self._swept), _time_of(self._held))

    def record_end(self, now: float) -> None:
        self._mark(self._swept, now)
        with suppress(OSError):
            os.unlink(self._held)

    def record_hold(self, now: float) -> None:
        self._mark(self._held, now)

    def _mark(self, path: str, now: float) -> None:
        # No directory is made: where a volume has gone away, there is none.
        with suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, self._file_perms))
            os.utime(path, (now, now))


class FileSweepMarks:
    """See `SweepMarks`. directory: has the marks."""

    def __init__(self, directory: str, *, threads: Threads, file_perms: int) -> None:
        self._files = SweepMarkFiles(directory, file_perms=file_perms)
        self._threads = threads

    async def read(self) -> SweepTimes:
        return await self._threads.run(self._files.read)

    async def record_end(self, now: float) -> None:
        await self._threads.run(self._files.record_end, now)

    async def record_hold(self, now: float) -> None:
        await self._threads.run(self._files.record_hold, now)


def _time_of(path: str) -> float | None:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return None
