"""One data file that is appended to: writes, early write-back, syncs, and cutting back to where it began.

The callers decide when and in which thread that happens.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import KW_ONLY, InitVar, dataclass, field

from tusd_py.locks.base import Fence, LeaseLost
from tusd_py.storage.errors import translated
from tusd_py.storage.file.fsync import BytesLost, start_writing, sync_bytes
from tusd_py.storage.file.losses import LossWatch
from tusd_py.storage.file.threads import Threads

_WRITE_BEHIND_BYTES = 8 * 1024 * 1024
"""Unwritten bytes after which their write-back is started."""


@dataclass(slots=True, eq=False)
class DataFile:
    """The file at `path`, appended to from `start` on.

    Attributes:
        start: Its length in bytes.
        threads: For syncs and write-back.
        writes_behind: Start the write-back of large bodies while they arrive.
        fence: Used around every write and cut, so that a holder that lost its lock does neither.
        watch: Detects bytes that the disk loses meanwhile.
        on_durable: Called in a thread after each sync.
        on_written: Called after each write.
        end: Where the next bytes go.
    """

    path: InitVar[str]
    start: int
    threads: Threads
    _: KW_ONLY
    writes_behind: bool
    fence: Fence
    watch: LossWatch | None = None
    on_durable: Callable[[DataFile], None] | None = None
    on_written: Callable[[DataFile], None] | None = None
    end: int = field(init=False)
    _written_behind: int = field(init=False)
    _writing_behind: Future[None] | None = field(default=None, init=False)
    _descriptor: int = field(init=False)

    def __post_init__(self, path: str) -> None:
        self.end = self._written_behind = self.start
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def write(self, data: memoryview) -> None:
        """Append `data`. Raises OSError (a prefix may be written then), BytesLost if earlier bytes may be lost, LeaseLost."""
        if self.watch is not None:
            self.watch.check(self._descriptor)
        with self.fence():
            written = os.pwrite(self._descriptor, data, self.end)
            self.end += written
            while written < len(data):
                data = data[written:]
                written = os.pwrite(self._descriptor, data, self.end)
                self.end += written
        if self.on_written is not None:
            self.on_written(self)
        if self.writes_behind and self.end - self._written_behind >= _WRITE_BEHIND_BYTES:
            self._write_behind()

    def _write_behind(self) -> None:
        """Start the write-back of new bytes, so that the final sync is short."""
        if self._writing_behind is not None and not self._writing_behind.done():
            return
        begun, self._written_behind = self._written_behind, self.end
        # In a thread, as it blocks while the disk's queue is full.
        self._writing_behind = self.threads.executor.submit(
            start_writing, self._descriptor, begun, self.end - begun
        )

    def read(self, view: memoryview, at: int) -> int:
        """Read back into `view` from `at`; returns the number of bytes read."""
        return os.preadv(self._descriptor, [view], at)

    @property
    def sound_length(self) -> int:
        """The length up to which the bytes count if those added are discarded."""
        if self.watch is not None and self.watch.is_lost and not self.watch.written.starts_sound:
            return 0
        return self.start

    def cut_back(self) -> None:
        """Discard all added bytes, and earlier ones if they may be lost. Raises OSError, LeaseLost."""
        length = self.sound_length
        with self.fence():
            os.ftruncate(self._descriptor, length)
        self.end = length

    async def sync(self) -> None:
        """Make the added bytes durable; if that fails, cut back, if the lock is still held. Raises StorageError."""
        with translated("syncing"):
            await self.threads.run(self._sync)

    def _sync(self) -> None:
        end = self.end
        try:
            sync_bytes(self._descriptor)
        except BytesLost:
            # The added bytes may be lost, and a second sync would not report it: they do not count.
            if self.watch is not None:
                self.watch.failed()
            with suppress(OSError, LeaseLost), self.fence():
                os.ftruncate(self._descriptor, self.sound_length)
            raise
        if self.watch is not None and self.watch.written.starts_sound:
            self.watch.written.durable_to = end
        if self.on_durable is not None:
            self.on_durable(self)

    @property
    def ends_in_zero(self) -> bool:
        """Whether the last byte is a zero. Raises OSError."""
        return os.pread(self._descriptor, 1, max(0, self.end - 1)) == b"\0"

    async def check_losses(self) -> None:
        """Discard bytes that the disk may have lost, if the lock is still held. Raises StorageError for them."""
        with translated("writing"):
            if self.watch is not None and self.watch.is_due():
                await self.threads.run(self._check_losses, self.watch)

    def _check_losses(self, watch: LossWatch) -> None:
        try:
            watch.recheck(self._descriptor)
        except BytesLost:
            with suppress(OSError, LeaseLost), self.fence():
                os.ftruncate(self._descriptor, self.sound_length)
            raise

    async def settle(self) -> None:
        """Wait until no thread uses the file."""
        if self._writing_behind is not None and not self._writing_behind.done():
            await asyncio.wait([asyncio.wrap_future(self._writing_behind)])

    def close(self) -> None:
        os.close(self._descriptor)
        if self.watch is not None:
            self.watch.written.closed_at = time.monotonic()
