"""Keep the list of uploads for operators complete: read the whole storage where the list may lack uploads.

The list (`redis/upload_list.py`) lacks uploads when it is wanted for the first time, after Redis was emptied, and those of a
server that was killed within a second of a creation. So the storage is read at the start, daily, and whenever the list is not
whole.
"""

from __future__ import annotations

import asyncio
import logging
import time

from tusd_py.redis import RedisUnavailable
from tusd_py.redis.upload_list import UploadList
from tusd_py.service.duty_cycle import DutyCycle
from tusd_py.storage.base import StorageError, Upload, UploadDamaged, batched_ids
from tusd_py.storage.skipped import ignore_entry
from tusd_py.telemetry.counters import Counters
from tusd_py.uploads.due_marks import listed
from tusd_py.uploads.service import Uploads

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
_NOTICE_SECONDS = 2.5
"""Time in which all servers notice that a list is wanted. They tell of what changes from then on."""
_AGAIN_SECONDS = 24 * 3600.0
_BATCH = 64


class ListKeeper:
    """Keeps the list of one store. names: whether uploads can be found by file name."""

    def __init__(
        self, uploads: Uploads, upload_list: UploadList, counters: Counters, *, names: bool
    ) -> None:
        self._uploads = uploads
        self._list = upload_list
        self._cycle = DutyCycle(counters)
        self._names = names

    async def run(self) -> None:
        """Keep it until cancelled."""
        read_at = float("-inf")
        while True:
            try:
                is_whole = await self._list.want()
                if not is_whole or time.monotonic() - read_at > _AGAIN_SECONDS:
                    await asyncio.sleep(_NOTICE_SECONDS)
                    async for batch in batched_ids(self._uploads.store.ids(ignore_entry), _BATCH):
                        await self._put(batch)
                    await self._list.mark(whole=True)
                    read_at = time.monotonic()
            except (RedisUnavailable, StorageError) as problem:
                logger.debug("the list of uploads is not whole: %s", problem)
            await asyncio.sleep(_LOOK_SECONDS)

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
        await asyncio.sleep(self._cycle.pause_factor() * (time.monotonic() - began))
