"""Keeps complete what Redis has of all uploads: the list for operators (`redis/upload_list.py`), and the bytes of owners.

Redis lacks uploads when the list or quotas are wanted for the first time, and after it was emptied; the list also lacks those
of a server that was killed within a second of a creation. So the whole storage is read then, and for the list at the start and
daily, too. Until the bytes are complete, creations are admitted by those that are known.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from tusd_py.auth.byte_quota import ByteQuotas
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.upload_list import UploadList
from tusd_py.service.duty_cycle import DutyCycle
from tusd_py.storage.base import StorageError, Upload, UploadDamaged, batched_ids
from tusd_py.storage.skipped import ignore_entry
from tusd_py.telemetry.counters import Counters
from tusd_py.uploads.due_marks import listed
from tusd_py.uploads.quotas import size_of
from tusd_py.uploads.service import Uploads

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
_NOTICE_SECONDS = 2.5
"""Time after which every server has noticed that the list is wanted, and records its changes there."""
_AGAIN_SECONDS = 24 * 3600.0
_BATCH = 64


class _Keeper(ABC):
    """Completes one index whenever it lacks uploads."""

    _INDEX: str

    def __init__(self, uploads: Uploads) -> None:
        self._store = uploads.store

    async def run(self) -> None:
        """Keep the index complete until cancelled."""
        while True:
            try:
                await self._complete()
            except (RedisUnavailable, StorageError) as problem:
                logger.debug("%s not whole: %s", self._INDEX, problem)
            await asyncio.sleep(_LOOK_SECONDS)

    @abstractmethod
    async def _complete(self) -> None:
        """Add what the index lacks, if anything. Raises RedisUnavailable, StorageError."""

    async def _batches(self) -> AsyncIterator[list[Upload]]:
        """All uploads; of damaged ones what can be read."""
        async for ids in batched_ids(self._store.ids(ignore_entry), _BATCH):
            found = await self._store.load_each(ids)
            uploads = [each.upload if isinstance(each, UploadDamaged) else each for each in found]
            yield [each for each in uploads if isinstance(each, Upload)]


class QuotaKeeper(_Keeper):
    """Keeps the bytes of the owners of one store. reads: whether it reads the storage; a worker only learns that they count."""

    _INDEX = "the bytes of owners are"

    def __init__(self, uploads: Uploads, quotas: ByteQuotas, *, reads: bool) -> None:
        super().__init__(uploads)
        self._quotas = quotas
        self._reads = reads

    async def _complete(self) -> None:
        if await self._quotas.want() or not self._reads:
            return
        async for batch in self._batches():
            for upload in batch:
                # A final of parts whose length is unknown counts when it is joined.
                if upload.joined or upload.length is not None:
                    await self._quotas.put_unknown(upload.info.owner, upload.id, size_of(upload))
        await self._quotas.mark_whole()


class ListKeeper(_Keeper):
    """Keeps the list of one store. names: whether uploads can be found by file name."""

    _INDEX = "the list of uploads is"

    def __init__(
        self, uploads: Uploads, upload_list: UploadList, counters: Counters, *, names: bool
    ) -> None:
        super().__init__(uploads)
        self._list = upload_list
        self._cycle = DutyCycle(counters)
        self._names = names
        self._read_at = float("-inf")

    async def _complete(self) -> None:
        is_whole = await self._list.want()
        if is_whole and time.monotonic() - self._read_at <= _AGAIN_SECONDS:
            return
        await asyncio.sleep(_NOTICE_SECONDS)
        began = time.monotonic()
        async for batch in self._batches():
            await self._list.update({each.id: listed(each, names=self._names) for each in batch})
            await asyncio.sleep(self._cycle.pause_factor() * (time.monotonic() - began))
            began = time.monotonic()
        await self._list.mark(whole=True)
        self._read_at = time.monotonic()
