"""One data file that is being added to: bytes at their places, a head start for its last sync, and back to where it began.

Not for: when and in which thread that is done.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from tusd_py.locks.base import Fence, LeaseLost
from tusd_py.storage.errors import translated
from tusd_py.storage.file.executor import Threads
from tusd_py.storage.file.fsync import BytesLost, start_writing, sync_bytes
from tusd_py.storage.file.losses import LossWatch

_WRITE_BEHIND = 8 * 1024 * 1024
"""Bytes after which the disk is told to begin with them."""


class DataFile:
    """The file at `path`, which is added to from `start` on.

    end: where the next bytes go. writes_behind: whether the disk shall begin with large bodies while they come in.
    watch: looks out for bytes that the disk loses meanwhile. on_durable: called in a thread after each sync.

    fence: around every write and every cut, so that a holder that lost its lock does neither.
    """

    __slots__ = (
        "_descriptor",
        "_fence",
        "_on_durable",
        "_start",
        "_threads",
        "_watch",
        "_writes_behind",
        "_writing_behind",
        "_written_behind",
        "end",
    )

    def __init__(
        self,
        path: str,
        start: int,
        threads: Threads,
        *,
        writes_behind: bool,
        fence: Fence,
        watch: LossWatch | None = None,
        on_durable: Callable[[DataFile], None] | None = None,
    ) -> None:
        self._watch = watch
        self._on_durable = on_durable
        self.end = start
        self._fence = fence
        self._start = start
        self._threads = threads
        self._writes_behind = writes_behind
        self._written_behind = start
        self._writing_behind: Future[None] | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def write(self, data: memoryview) -> None:
        """Adds `data`. Raises OSError, with a prefix of it perhaps added; BytesLost if earlier bytes may be lost; LeaseLost."""
        if self._watch is not None:
            self._watch.check(self._descriptor)
        with self._fence():
            written = os.pwrite(self._descriptor, data, self.end)
            self.end += written
            while written < len(data):
                data = data[written:]
                written = os.pwrite(self._descriptor, data, self.end)
                self.end += written
        if self._writes_behind and self.end - self._written_behind >= _WRITE_BEHIND:
            self._write_behind()

    def _write_behind(self) -> None:
        """Lets the disk begin with what it will have to write anyhow, so that the sync at the end is short."""
        if self._writing_behind is not None and not self._writing_behind.done():
            return
        begun, self._written_behind = self._written_behind, self.end
        # It waits where the disk's queue is full.
        self._writing_behind = self._threads.executor.submit(
            start_writing, self._descriptor, begun, self.end - begun
        )

    def read(self, view: memoryview, at: int) -> int:
        """Reads back what was added, as far as it fills `view`; returns how many bytes that were."""
        return os.preadv(self._descriptor, [view], at)

    @property
    def sound_length(self) -> int:
        """The length to which the file is sound if what was added is taken back."""
        if self._watch is not None and self._watch.is_lost and not self._watch.written.starts_sound:
            return 0
        return self._start

    def cut_back(self) -> None:
        """Takes back all that was added, and what was there before if that may be lost. Raises OSError, LeaseLost."""
        length = self.sound_length
        with self._fence():
            os.ftruncate(self._descriptor, length)
        self.end = length

    async def sync(self) -> None:
        """Returns when what was added is durable; otherwise it is cut back, if it is ours. Raises StorageError."""
        with translated("syncing"):
            await self._threads.run(self._sync)

    def _sync(self) -> None:
        end = self.end
        try:
            sync_bytes(self._descriptor)
        except BytesLost:
            # What was added may be lost, and a second sync would find nothing wrong: it does not count.
            if self._watch is not None:
                self._watch.failed()
            with suppress(OSError, LeaseLost), self._fence():
                os.ftruncate(self._descriptor, self.sound_length)
            raise
        if self._watch is not None and self._watch.written.starts_sound:
            self._watch.written.durable_to = end
        if self._on_durable is not None:
            self._on_durable(self)

    @property
    def ends_in_zero(self) -> bool:
        """Whether the last byte is a zero. Raises OSError."""
        return os.pread(self._descriptor, 1, max(0, self.end - 1)) == b"\0"

    async def check_losses(self) -> None:
        """Cuts back what the disk may have lost meanwhile, if it is ours, and raises the StorageError of that."""
        if self._watch is not None and self._watch.is_due():
            with translated("writing"):
                await self._threads.run(self._check_losses, self._watch)

    def _check_losses(self, watch: LossWatch) -> None:
        try:
            watch.look(self._descriptor)
        except BytesLost:
            with suppress(OSError, LeaseLost), self._fence():
                os.ftruncate(self._descriptor, self.sound_length)
            raise

    async def settle(self) -> None:
        """Returns when no thread has to do with the file any more."""
        if self._writing_behind is not None and not self._writing_behind.done():
            await asyncio.wait([asyncio.wrap_future(self._writing_behind)])

    def close(self) -> None:
        """Lets the file go."""
        os.close(self._descriptor)
        if self._watch is not None:
            self._watch.written.closed_at = time.monotonic()
