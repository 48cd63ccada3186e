"""Keep the list of uploads for operators complete: read the whole storage where the list may lack uploads.

The list (`redis/upload_list.py`) lacks uploads when it is wanted for the first time, after Redis was emptied, and those of a
server that was killed within a second of a creation. So the storage is read at the start, daily, and whenever the list is not
whole.
"""

from __future__ import annotations

import asyncio
import logging
import time

from tusd_py.metrics.counters import Counters
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.upload_list import UploadList
from tusd_py.storage.base import StorageError, Upload, UploadDamaged
from tusd_py.storage.skipped import Skip
from tusd_py.uploads.due_marks import listed
from tusd_py.uploads.service import Uploads

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
_NOTICE_SECONDS = 2.5
"""Time in which all servers notice that a list is wanted. They tell of what changes from then on."""
_AGAIN_SECONDS = 24 * 3600.0
_BATCH = 64
_PAUSE_FACTOR = 3.0
"""Seconds of pause per second of reading while clients are served: a duty cycle of 25 %."""


class ListKeeper:
    """Keeps the list of one store. names: whether uploads can be found by file name."""

    def __init__(
        self, uploads: Uploads, upload_list: UploadList, counters: Counters, *, names: bool
    ) -> None:
        self._uploads = uploads
        self._list = upload_list
        self._counters = counters
        self._names = names
        self._served = 0

    async def run(self) -> None:
        """Keep it until cancelled."""
        read_at = float("-inf")
        while True:
            try:
                is_whole = await self._list.want()
                if not is_whole or time.monotonic() - read_at > _AGAIN_SECONDS:
                    await asyncio.sleep(_NOTICE_SECONDS)
                    await self._read()
                    await self._list.mark(whole=True)
                    read_at = time.monotonic()
            except (RedisUnavailable, StorageError) as problem:
                logger.debug("the list of uploads is not whole: %s", problem)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _read(self) -> None:
        batch: list[str] = []
        async for upload_id in self._uploads.store.ids(_skip):
            batch.append(upload_id)
            if len(batch) == _BATCH:
                await self._put(batch)
                batch.clear()
        await self._put(batch)

    async def _put(self, batch: list[str]) -> None:
        began = time.monotonic()
        found = await self._uploads.store.load_each(batch)
        uploads = [each.upload if isinstance(each, UploadDamaged) else each for each in found]
        await self._list.update(
            {
                each.id: listed(each, names=self._names)
                for each in uploads
                if isinstance(each, Upload)
            }
        )
        await asyncio.sleep(self._pause_factor() * (time.monotonic() - began))

    def _pause_factor(self) -> float:
        served, self._served = self._served, self._counters.requests()
        return _PAUSE_FACTOR if served != self._served or self._counters.uploads_active else 0.0


def _no_skip(_path: str, _problem: Exception) -> None:
    """Sweeps report entries that cannot be read."""


_skip: Skip = _no_skip
