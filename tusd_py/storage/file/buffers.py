"""Memory for bytes that are checked before they are written: some blocks that all uploads of a store share.

Not for: what becomes of the bytes.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

SIZE = 1024 * 1024
"""Bytes of a block."""
_MOST = 32
"""Blocks that there are at most: few enough to stay in a processor's cache until they are hashed."""
LONG = 1.0
"""Seconds. Whoever fills a block for longer has a slow client, and has to do without."""


class Holder(Protocol):
    """Who fills a block. since: when it was taken, by the monotonic clock."""

    since: float

    def hurry(self) -> None:
        """Gives up the block with what is in it, as others wait for one."""


class BufferPool:
    """Blocks that are made when they are needed and stay, for the first use is the dearest. For the event loop, but for
    `give_back`."""

    def __init__(self, most: int = _MOST) -> None:
        self._free: deque[memoryview] = deque()
        self._left_to_make = most
        # Those that fill one, the one that has it for the longest time first.
        self._holders: dict[Holder, None] = {}

    def take(self, holder: Holder) -> memoryview | None:
        """One that nobody uses, if there is one; `holder` fills it until it calls `filled`."""
        if self._free:
            block = self._free.pop()
        elif self._left_to_make:
            self._left_to_make -= 1
            block = memoryview(bytearray(SIZE))
        else:
            self._hurry()
            return None
        holder.since = time.monotonic()
        self._holders[holder] = None
        return block

    def _hurry(self) -> None:
        """A client that stands still does not keep the others from their blocks."""
        holder = next(iter(self._holders), None)
        if holder is not None and time.monotonic() - holder.since > LONG:
            holder.hurry()

    def filled(self, holder: Holder) -> None:
        """It fills its block no more."""
        self._holders.pop(holder, None)

    def give_back(self, block: memoryview) -> None:
        """A block is used no more; for any thread."""
        self._free.append(block)
