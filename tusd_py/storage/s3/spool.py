"""The memory in which bytes wait for the bucket: bounded for all uploads of a process together.

A writer takes what it stores and gives it back once the bucket has it. While more is taken than the limit allows, writers wait
before they read on, and those that have the most put their bytes into the bucket as a tail and let go of them. Nothing fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from tusd_py.background import spawn
from tusd_py.storage.file.threads import Threads

_LOOK_AGAIN_SECONDS = 0.2
_SLOW_SECONDS = 1.0
"""How long a relief may take until another writer is asked as well."""
_MOST_USED_BUFFERS = 8
_SMALL_BYTES = 64 * 1024


class Holder(Protocol):
    """A writer that holds bytes which are in no request to the bucket. needs_disk: it puts them into a file."""

    needs_disk: bool

    @property
    def idle_bytes(self) -> int:
        """How many it could let go of; 0 if it cannot now."""

    @property
    def part_bytes(self) -> int:
        """Bytes of the part that it fills, when that is whole."""

    def relieve(self) -> Awaitable[None]:
        """Put them into the bucket, or a file, and let go of them. Never raises: the writer tells its own request."""


class Spool:
    """Counts bytes.

    Attributes:
        limit: Most that may wait; a single part may be larger.
        used: Bytes that are counted now.
        spare: Lets go of some bytes that only save a request later; returns False if there are none.
        threads: Read and write the files of those that have no room in memory.
        small_buffer: Where those receive bytes meanwhile, so that few wait in memory for a thread. One for all, as they are
            copied before any other connection is read.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.threads = Threads("tusd-spool")
        self.small_buffer = memoryview(bytearray(_SMALL_BYTES))
        self.spare: Callable[[], bool] = lambda: False
        self._holders: set[Holder] = set()
        self._freed = asyncio.Event()
        self._reliefs: dict[Holder, tuple[asyncio.Task[None], float]] = {}
        """Those under way, and when they began by the clock of the event loop."""
        self._used_buffers: list[bytearray] = []

    def enter(self, holder: Holder) -> None:
        self._holders.add(holder)

    def leave(self, holder: Holder) -> None:
        self._holders.discard(holder)
        if not self._holders:
            self._used_buffers.clear()

    def buffer(self, size: int) -> bytearray:
        """Return a buffer for a whole part, with any bytes in it: one that was used before costs no page faults."""
        while self._used_buffers:
            buffer = self._used_buffers.pop()
            if len(buffer) == size:
                return buffer
        return bytearray(size)

    def reuse(self, buffer: bytearray) -> None:
        """Take a buffer of a part back, if nothing reads from it any more: connections to the object store may be behind."""
        try:
            # Refused while anybody has a view of it.
            buffer.append(0)
            del buffer[-1]
        except BufferError:
            return
        if len(self._used_buffers) < _MOST_USED_BUFFERS:
            self._used_buffers.append(buffer)

    def take(self, size: int) -> None:
        """Count bytes that a writer stores."""
        self.used += size
        while self.is_full and self.spare():
            pass

    def give_back(self, size: int) -> None:
        """Count bytes that the bucket has, or that are void."""
        self.used -= size
        if not self.is_full:
            self._freed.set()

    @property
    def is_full(self) -> bool:
        return self.used > self.limit

    def _has_room(self) -> bool:
        """Whether less is taken than the limit, or than one part needs: put away, that would have to be read back at once."""
        largest = max((holder.part_bytes for holder in self._holders), default=0)
        return self.used <= max(self.limit, largest)

    async def wait(self) -> None:
        """Wait until there is room."""
        while self.is_full and not self._has_room():
            self._freed.clear()
            self._relieve_next()
            with suppress(TimeoutError):
                # A holder that could not let go before may be able to soon.
                await asyncio.wait_for(self._freed.wait(), _LOOK_AGAIN_SECONDS)

    def _relieve_next(self) -> None:
        """Relieve the writer that has the most, unless another relief began just now.

        Once a disk, or a bucket, stands still, those that put their bytes elsewhere come first.
        """
        now = asyncio.get_running_loop().time()
        if any(now - began < _SLOW_SECONDS for _, began in self._reliefs.values()):
            return
        slow = {holder.needs_disk for holder in self._reliefs}
        idle = [each for each in self._holders if each.idle_bytes and each not in self._reliefs]
        if idle:
            chosen = max(idle, key=lambda each: (each.needs_disk not in slow, each.idle_bytes))
            self._reliefs[chosen] = (
                spawn(self._relieve(chosen), "a move of bytes out of memory"),
                now,
            )

    async def _relieve(self, holder: Holder) -> None:
        try:
            await holder.relieve()
        finally:
            del self._reliefs[holder]
