"""A running checksum of what is written to a file, computed beside the writing where there is a second processor.

Hashing costs more than everything else that is done to a byte, so it does not wait for its turn in the event loop: a thread
follows the writer. What it is to hash is copied while it is still in the processor's cache, into blocks that all writers share;
where these are all in use, the thread reads back from the page cache what was written, which costs more, but no memory. Small
pieces are hashed as they are written. Not for: what the checksum should be.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import cache

from tusd_py.protocol.checksum import Hasher

_WORTHWHILE = 128 * 1024
"""Bytes that are left to a thread; the way into it costs as much as hashing some tens of KiB."""
_PIECE = 256 * 1024
"""Bytes that are copied and hashed at a time."""
_MOST_BLOCKS = 64
"""Of a piece each, for all writers of a process: few enough to stay in a processor's cache until they are hashed."""
_TURN = 8 * 1024 * 1024
"""Bytes after which a thread takes the next file, for there may be more files than threads."""
_FAR = 64 * 1024 * 1024
"""Bytes that may wait to be hashed: whoever wants the upload next waits until they are, and they are to be in memory still."""
_MOST_THREADS = 16


def hashing_threads() -> ThreadPoolExecutor:
    """Threads to follow writers with, as many as there are processors."""
    return ThreadPoolExecutor(min(_processors(), _MOST_THREADS), thread_name_prefix="tusd-hash")


@cache
def _processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Blocks:
    """Memory for what is on its way to a thread. It is made when it is needed and stays: the first use is the dearest."""

    def __init__(self) -> None:
        self._free: deque[memoryview] = deque()
        self._made = 0

    def take(self) -> memoryview | None:
        """One that nobody uses, if there is one; for the event loop."""
        if self._free:
            return self._free.pop()
        if self._made == _MOST_BLOCKS:
            return None
        self._made += 1
        return memoryview(bytearray(_PIECE))

    def give_back(self, block: memoryview) -> None:
        """It is used no more; for any thread."""
        self._free.append(block)


_blocks = _Blocks()


class _Buffer(threading.local):
    """What a thread reads back comes in here: its own, for its life."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_PIECE))


_buffer = _Buffer()


class Follower:
    """Feeds `hasher` the bytes of a file from `start` on, in their order.

    beside: whether threads may do it while more is written, which they do where there is more than one processor. Its methods
    are for the event loop. The descriptor must stay open until `stop` has returned.
    """

    __slots__ = (
        "_beside",
        "_copies",
        "_descriptor",
        "_hashed",
        "_hasher",
        "_job",
        "_stopped",
        "_threads",
        "_written",
    )

    def __init__(
        self, hasher: Hasher, descriptor: int, start: int, threads: Executor, *, beside: bool
    ) -> None:
        self._hasher = hasher
        self._descriptor = descriptor
        self._threads = threads
        self._beside = beside and _processors() > 1
        # Of what was not hashed yet, as far as there were blocks: where it begins, how long it is, and the block.
        self._copies: deque[tuple[int, int, memoryview]] = deque()
        self._hashed = start
        self._written = start
        self._job: Future[None] | None = None
        self._stopped = False

    def wrote(self, data: memoryview, end: int) -> None:
        """`data` was written, and the file goes up to `end`. Raises OSError where earlier bytes could not be read back."""
        if not self._beside or (len(data) < _WORTHWHILE and not self._is_behind()):
            self._hasher.update(data)
            self._hashed = self._written = end
            return
        self._copy(data, end - len(data))
        self._written = end
        if end - self._hashed >= _WORTHWHILE and not self._is_busy():
            self._begin()

    def _copy(self, data: memoryview, start: int) -> None:
        for at in range(0, len(data), _PIECE):
            block = _blocks.take()
            if block is None:
                return
            piece = data[at : at + _PIECE]
            block[: len(piece)] = piece
            self._copies.append((start + at, len(piece), block))

    @property
    def is_far_behind(self) -> bool:
        """Whether there should be no more before `keep_up` has returned."""
        return self._written - self._hashed > _FAR

    async def keep_up(self) -> None:
        """Returns when half of what may wait at most is left, at once where that is not reached. Raises OSError."""
        if self.is_far_behind:
            while self._written - self._hashed > _FAR // 2:
                if not self._is_busy():
                    self._begin()
                await self._job_ended()

    async def finish(self, end: int) -> None:
        """Returns when `hasher` has everything up to `end`. Raises OSError where bytes could not be read back."""
        self._written = end
        while self._is_behind():
            if self._job is None:
                if self._written - self._hashed < _WORTHWHILE:
                    self._hash()
                    return
                self._begin()
            await self._job_ended()

    async def stop(self) -> None:
        """Returns when no thread reads the file any more, whatever is still to be hashed."""
        self._stopped = True
        if self._job is not None and not self._job.cancel():
            await self._job_ended()
        for _, _, block in self._copies:
            _blocks.give_back(block)
        self._copies.clear()

    def _is_behind(self) -> bool:
        return self._is_busy() or self._hashed < self._written

    def _is_busy(self) -> bool:
        """Whether a thread is at work. Raises what the last one has raised."""
        if self._job is None:
            return False
        if not self._job.done():
            return True
        job, self._job = self._job, None
        job.result()
        return False

    def _begin(self) -> None:
        self._job = self._threads.submit(self._hash)

    async def _job_ended(self) -> None:
        if self._job is not None and not self._job.done():
            ended = asyncio.wrap_future(self._job)
            await asyncio.wait([ended])
            # Told by `_is_busy` to whoever still wants to know.
            ended.exception()

    def _hash(self) -> None:
        """Hashes what was written and was not hashed yet, up to a turn of it."""
        last = self._hashed + _TURN
        while self._hashed < (written := min(self._written, last)) and not self._stopped:
            if self._copies and self._copies[0][0] <= self._hashed:
                _, size, block = self._copies.popleft()
                self._hasher.update(block[:size])
                self._hashed += size
                _blocks.give_back(block)
            else:
                self._hash_stored(min(written, self._copies[0][0]) if self._copies else written)

    def _hash_stored(self, end: int) -> None:
        """A piece of what is in the file, not further than to `end`."""
        view = _buffer.view[: end - self._hashed]
        count = os.preadv(self._descriptor, [view], self._hashed)
        if not count:
            raise OSError(errno.EIO, "the data file is shorter than what was written")
        self._hasher.update(view[:count])
        self._hashed += count
