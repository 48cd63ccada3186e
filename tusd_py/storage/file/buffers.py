"""A pool of buffers for bytes that are verified before they are written, shared by all uploads of a store."""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

BUFFER_BYTES = 1024 * 1024
"""Size of one buffer."""
_MAX_BUFFERS = 32
"""Few enough that buffers stay in a processor's cache until they are hashed."""
SLOW_FILL_SECONDS = 1.0
"""A client that takes longer to fill a buffer is slow and has to go without one."""


class Holder(Protocol):
    """A user that fills a buffer. since: when it acquired the buffer, by the monotonic clock."""

    since: float

    def flush(self) -> None:
        """Hand the buffer on with what it holds, because others wait for one."""


class BufferPool:
    """A pool of buffers, allocated on demand and kept, as the first use costs most. For the event loop, except `release`."""

    def __init__(self, most: int = _MAX_BUFFERS) -> None:
        self._free: deque[memoryview] = deque()
        self._unallocated = most
        # Users that are filling a buffer, longest first.
        self._holders: dict[Holder, None] = {}

    def acquire(self, holder: Holder) -> memoryview | None:
        """Return a free buffer, if any, which `holder` fills until it calls `filled`."""
        if self._free:
            buffer = self._free.pop()
        elif self._unallocated:
            self._unallocated -= 1
            buffer = memoryview(bytearray(BUFFER_BYTES))
        else:
            self._flush_slowest()
            return None
        holder.since = time.monotonic()
        self._holders[holder] = None
        return buffer

    def _flush_slowest(self) -> None:
        """Take the buffer from a client that is too slow."""
        holder = next(iter(self._holders), None)
        if holder is not None and time.monotonic() - holder.since > SLOW_FILL_SECONDS:
            holder.flush()

    def filled(self, holder: Holder) -> None:
        """End the filling of the holder's buffer."""
        self._holders.pop(holder, None)

    def release(self, buffer: memoryview) -> None:
        """Return a buffer to the pool. For any thread."""
        self._free.append(buffer)
