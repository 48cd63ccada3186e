"""Bytes into one data file: inline while the disk is quick, in a thread while it is slow, with a head start for its last sync.

Not for: where the file lies, and whose turn it is to write.
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import Executor, Future
from contextlib import suppress

from tusd_py.protocol.checksum import Hasher
from tusd_py.storage.following import Follower
from tusd_py.storage.problems import translated
from tusd_py.storage.syncing import BytesLost, start_writing, sync_bytes, sync_path
from tusd_py.storage.threads import Threads

_SLOW_WRITE = 0.02
"""Seconds. A write into the page cache takes far less; one that takes longer is being throttled by the disk."""
_SLOW_PERIOD = 1.0
"""Seconds for which writes go through a thread after a slow one."""
_WRITE_BEHIND = 8 * 1024 * 1024
"""Bytes after which the disk is told to begin with them."""


class FileWriter:
    """Bytes at the end of one data file, from an offset on; see `Writer`.

    marker: a file that says where to cut back to, as long as what is written does not count. writes_behind: whether the disk
    shall begin with large bodies while they come in. follows: whether it may be read back meanwhile for a checksum.
    hashing: threads for that.

    Every write says where it goes, so that a holder that lost its lock could at worst repeat bytes, never displace them.
    """

    __slots__ = (
        "_abandoned",
        "_descriptor",
        "_follower",
        "_follows",
        "_hashing",
        "_marker",
        "_slow_until",
        "_start",
        "_threads",
        "_writes_behind",
        "_writing_behind",
        "_written_behind",
        "offset",
    )

    def __init__(
        self,
        path: str,
        offset: int,
        threads: Threads,
        *,
        follows: bool,
        hashing: Executor,
        marker: str | None,
        writes_behind: bool,
    ) -> None:
        self.offset = offset
        self._start = offset
        self._threads = threads
        self._follows = follows
        self._hashing = hashing
        self._follower: Follower | None = None
        self._marker = marker
        self._writes_behind = writes_behind
        self._abandoned = False
        self._slow_until = 0.0
        self._written_behind = offset
        self._writing_behind: Future[None] | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def _write_behind(self) -> None:
        """Lets the disk begin with what it will have to write anyhow, so that the sync at the end is short."""
        if self._writing_behind is not None and not self._writing_behind.done():
            return
        begun, self._written_behind = self._written_behind, self.offset
        # It waits where the disk's queue is full.
        self._writing_behind = self._threads.executor.submit(
            start_writing, self._descriptor, begun, self.offset - begun
        )

    async def write(self, data: bytes) -> None:
        if time.monotonic() >= self._slow_until:
            self.write_inline(memoryview(data))
        else:
            with translated("writing"):
                await self._threads.run(self._write, memoryview(data))
            self._wrote(memoryview(data))
        if self._follower is not None:
            with translated("reading back"):
                await self._follower.keep_up()

    def write_inline(self, data: memoryview) -> bool:
        with translated("writing"):
            began = time.monotonic()
            self._write(data)
            if self._writes_behind and self.offset - self._written_behind >= _WRITE_BEHIND:
                self._write_behind()
            quick = time.monotonic() - began <= _SLOW_WRITE
            if not quick:
                self._slow_until = began + _SLOW_PERIOD
        return self._wrote(data) and quick

    def _write(self, data: memoryview) -> None:
        written = os.pwrite(self._descriptor, data, self.offset)
        self.offset += written
        while written < len(data):
            data = data[written:]
            written = os.pwrite(self._descriptor, data, self.offset)
            self.offset += written

    def _wrote(self, data: memoryview) -> bool:
        """Whether whoever hashes it keeps up."""
        if self._follower is None:
            return True
        with translated("reading back"):
            self._follower.wrote(data, self.offset)
        return not self._follower.is_far_behind

    def follow(self, hasher: Hasher, *, beside: bool) -> None:
        self._follower = Follower(
            hasher, self._descriptor, self.offset, self._hashing, beside=beside and self._follows
        )

    async def feed(self, hasher: Hasher) -> None:
        if self._follower is None:
            self._follower = Follower(
                hasher, self._descriptor, self._start, self._hashing, beside=True
            )
        with translated("reading back"):
            await self._follower.finish(self.offset)

    async def discard(self) -> None:
        with translated("cutting back"):
            os.ftruncate(self._descriptor, self._start)
            self.offset = self._start
        self._remove_marker()

    def abandon(self) -> None:
        self._marker = None
        self._abandoned = True

    async def close(self, *, sync: bool) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        if self._follower is not None:
            await self._follower.stop()
        if self._writing_behind is not None and not self._writing_behind.done():
            await asyncio.wait([asyncio.wrap_future(self._writing_behind)])
        try:
            with translated("syncing"):
                if sync:
                    await self._threads.run(self._sync, descriptor)
                if self._marker is not None:
                    directory = os.path.dirname(self._marker)
                    self._remove_marker()
                    if sync:
                        await self._threads.run(sync_path, directory)
        finally:
            os.close(descriptor)

    def _sync(self, descriptor: int) -> None:
        try:
            sync_bytes(descriptor)
        except BytesLost:
            # What was added may be lost, and a second sync would find nothing wrong: it does not count.
            if not self._abandoned:
                with suppress(OSError):
                    os.ftruncate(descriptor, self._start)
            raise

    def _remove_marker(self) -> None:
        if self._marker is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._marker)
            self._marker = None
