"""The space of the file system that uploads are stored on, read at intervals, so that a scrape never waits for a disk.

Of several processes that serve one port, the first one reads it.
"""

from __future__ import annotations

import asyncio
import logging
import time

from tusd_py.storage.base import DiskSpace, StorageError, Store

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 15.0
_MAX_AGE_SECONDS = 60.0


class DiskMetrics:
    """Reads the space of a store's disk. reserve: bytes that are kept free."""

    def __init__(self, store: Store, reserve: int) -> None:
        self._store = store
        self.reserve = reserve
        self._seen: DiskSpace | None = None
        self._seen_at = 0.0

    async def run(self) -> None:
        """Read at intervals, until cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def read(self) -> None:
        """Read once; what was read before stays valid until it is too old."""
        try:
            self._seen = await self._store.disk_space()
        except StorageError as problem:
            logger.debug("the space of the disk is unknown: %s", problem)
            return
        self._seen_at = time.monotonic()

    @property
    def seen(self) -> DiskSpace | None:
        """What was read last; None if that is too long ago, and where there is no disk to fill."""
        return self._seen if time.monotonic() - self._seen_at <= _MAX_AGE_SECONDS else None
