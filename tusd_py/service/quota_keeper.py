"""Keep the bytes of owners complete: read the whole storage where Redis may lack uploads.

That is when quotas are new, and after Redis was emptied. Until then creations are admitted by what is known.
"""

from __future__ import annotations

import asyncio
import logging

from tusd_py.auth.byte_quota import ByteQuotas
from tusd_py.redis import RedisUnavailable
from tusd_py.storage.base import StorageError, Upload, UploadDamaged, batched_ids
from tusd_py.storage.skipped import ignore_entry
from tusd_py.uploads.quotas import size_of
from tusd_py.uploads.service import Uploads

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
_BATCH = 64


class QuotaKeeper:
    """Keeps the bytes of the owners of one store. reads: whether it reads the storage; a worker only learns that they count."""

    def __init__(self, uploads: Uploads, quotas: ByteQuotas, *, reads: bool) -> None:
        self._uploads = uploads
        self._quotas = quotas
        self._reads = reads

    async def run(self) -> None:
        """Keep them until cancelled."""
        while True:
            try:
                if not await self._quotas.want() and self._reads:
                    async for batch in batched_ids(self._uploads.store.ids(ignore_entry), _BATCH):
                        await self._put(batch)
                    await self._quotas.mark_whole()
            except (RedisUnavailable, StorageError) as problem:
                logger.debug("the bytes of owners are not whole: %s", problem)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _put(self, batch: list[str]) -> None:
        for found in await self._uploads.store.load_each(batch):
            upload = found.upload if isinstance(found, UploadDamaged) else found
            # A final of parts whose length is unknown counts when it is joined.
            if isinstance(upload, Upload) and (upload.joined or upload.length is not None):
                await self._quotas.put_unknown(upload.info.owner, upload.id, size_of(upload))
