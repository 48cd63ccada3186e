"""Tails that stay in memory after their request, so that the next one of the same process need not read them back.

The spool counts them, and lets go of them before anybody waits: the bucket has their bytes too. A tail is known by its etag, so
that one which another process replaced is never taken for it. A tail that is not used within a minute is dropped as well.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import NamedTuple

from tusd_py.storage.s3.spool import Spool

_SHARE = 4
"""Part of the spool that tails may take: one in so many."""
_KEPT_SECONDS = 60.0


class _Kept(NamedTuple):
    """A tail. size: how many bytes of the buffer it has. since: time of the event loop."""

    etag: str
    buffer: bytearray
    size: int
    since: float


class Tails:
    """The last tails that this process stored, by upload. spool: counts their bytes. seconds: how long they are kept."""

    def __init__(self, spool: Spool, *, seconds: float = _KEPT_SECONDS) -> None:
        self._spool = spool
        self._seconds = seconds
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        spool.spare = self._drop_oldest

    def keep(self, upload_id: str, etag: str, buffer: bytearray, size: int) -> None:
        """Keep the buffer whose first `size` bytes are the tail with this etag; the spool counts these already."""
        self.drop(upload_id)
        if len(buffer) > 2 * size:
            # All of a buffer that was used before takes memory, also where this tail has no bytes: only these are counted.
            buffer = buffer[:size]
        loop = asyncio.get_running_loop()
        self._kept[upload_id] = _Kept(etag, buffer, size, loop.time())
        self._bytes += size
        while self._bytes > self._spool.limit // _SHARE:
            self._drop_oldest()
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._drop_old)

    def take(self, upload_id: str, etag: str, size: int) -> bytearray | None:
        """Return the buffer of a tail, whose bytes the spool goes on counting for the caller; None if it is not there."""
        found = self._kept.get(upload_id)
        if found is None or (found.etag, found.size) != (etag, size):
            return None
        del self._kept[upload_id]
        self._bytes -= size
        return found.buffer

    def drop(self, upload_id: str) -> None:
        """Let go of the tail of an upload."""
        found = self._kept.pop(upload_id, None)
        if found is not None:
            self._bytes -= found.size
            self._spool.give_back(found.size)

    def close(self) -> None:
        """Let go of all tails."""
        while self._drop_oldest():
            pass
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop_old(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        for upload_id, kept in list(self._kept.items()):
            left = kept.since + self._seconds - loop.time()
            if left > 0:
                self._timer = loop.call_later(left, self._drop_old)
                return
            self.drop(upload_id)

    def _drop_oldest(self) -> bool:
        """Let go of the tail that nobody asked for the longest; whether there was one."""
        if not self._kept:
            return False
        self.drop(next(iter(self._kept)))
        return True
