"""Tails that stay in memory after their request, so that the next one of the same process need not read them back.

The spool counts them, and lets go of them before anybody waits: the bucket has their bytes too. A tail is known by its etag, so
that one which another process replaced is never taken for it.
"""

from __future__ import annotations

from collections import OrderedDict

from tusd_py.storage.s3.spool import Spool

_SHARE = 4
"""Part of the spool that tails may take: one in so many."""


class Tails:
    """The last tails that this process stored, by upload. spool: counts their bytes."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._kept: OrderedDict[str, tuple[str, bytearray, int]] = OrderedDict()
        self._bytes = 0
        spool.spare = self._drop_oldest

    def keep(self, upload_id: str, etag: str, buffer: bytearray, size: int) -> None:
        """Keep the buffer whose first `size` bytes are the tail with this etag; the spool counts these already."""
        self.drop(upload_id)
        self._kept[upload_id] = etag, buffer, size
        self._bytes += size
        while self._bytes > self._spool.limit // _SHARE:
            self._drop_oldest()

    def take(self, upload_id: str, etag: str, size: int) -> bytearray | None:
        """Return the buffer of a tail, whose bytes the spool goes on counting for the caller; None if it is not there."""
        found = self._kept.get(upload_id)
        if found is None or (found[0], found[2]) != (etag, size):
            return None
        del self._kept[upload_id]
        self._bytes -= size
        return found[1]

    def drop(self, upload_id: str) -> None:
        """Let go of the tail of an upload."""
        found = self._kept.pop(upload_id, None)
        if found is not None:
            self._bytes -= found[2]
            self._spool.give_back(found[2])

    def _drop_oldest(self) -> bool:
        """Let go of the tail that nobody asked for the longest; whether there was one."""
        if not self._kept:
            return False
        self.drop(next(iter(self._kept)))
        return True
