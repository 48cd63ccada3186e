"""Bytes into one data file as they come: inline while the disk is quick, in a thread while it is slow.

Not for: where the file lies, and whose turn it is to write.
"""

from __future__ import annotations

import time

from tusd_py.storage.datafile import DataFile
from tusd_py.storage.problems import translated
from tusd_py.storage.threads import Threads

SLOW_WRITE = 0.02
"""Seconds. A write into the page cache takes far less; one that takes longer is being throttled by the disk."""
SLOW_PERIOD = 1.0
"""Seconds for which writes go through a thread after a slow one."""


class FileWriter:
    """Bytes at the end of one data file, from an offset on; see `Writer`."""

    __slots__ = ("_closed", "_file", "_slow_until", "_threads")

    def __init__(self, file: DataFile, threads: Threads) -> None:
        self._file = file
        self._threads = threads
        self._closed = False
        self._slow_until = 0.0

    @property
    def offset(self) -> int:
        """See `Writer`."""
        return self._file.end

    async def write(self, data: bytes) -> None:
        if time.monotonic() >= self._slow_until:
            self.write_inline(memoryview(data))
        else:
            with translated("writing"):
                await self._threads.run(self._file.write, memoryview(data))

    def write_inline(self, data: memoryview) -> bool:
        with translated("writing"):
            began = time.monotonic()
            self._file.write(data)
            quick = time.monotonic() - began <= SLOW_WRITE
            if not quick:
                self._slow_until = began + SLOW_PERIOD
        return quick

    async def discard(self) -> None:
        with translated("cutting back"):
            self._file.cut_back()

    def abandon(self) -> None:
        """See `Writer`. Nothing is left to be done at the end: each write counted when it was made."""

    async def close(self, *, sync: bool) -> None:
        if self._closed:
            return
        self._closed = True
        await self._file.settle()
        try:
            await self._file.check_losses()
            if sync:
                await self._file.sync()
        finally:
            self._file.close()
