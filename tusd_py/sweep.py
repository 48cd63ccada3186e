"""The sweep: what has expired is removed, what a crash left undone is made up for, what it left behind goes.

It walks over the whole store and decides nothing itself: whether an upload is due, and how it ends, is told by `uploads.py`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import RemovesUploads, StorageError, UploadNotFound
from tusd_py.uploads import Uploads

logger = logging.getLogger(__name__)

_YIELD_EVERY = 50


@dataclass(slots=True)
class SweepReport:
    """What a sweep did: counts of uploads, and of remains of crashes."""

    seen: int = 0
    expired: int = 0
    finished: int = 0
    remains: int = 0


async def sweep(uploads: Uploads) -> SweepReport:
    """Looks at every upload once, and tidies the store. Raises StorageError where the store as a whole fails.

    May run at any time, beside requests and beside other sweeps.
    """
    report = SweepReport()
    store = uploads.store
    if not isinstance(store, RemovesUploads):
        return report
    async for upload_id in store.ids():
        if uploads.closing:
            return report
        report.seen += 1
        try:
            await _look_at(uploads, store, upload_id, report)
        except (StorageError, ProtocolError) as problem:
            logger.warning("the sweep passed %s over: %s", upload_id, problem)
        if report.seen % _YIELD_EVERY == 0:
            await asyncio.sleep(0)
    report.remains += await store.tidy(tombstone_ttl=uploads.rules.tombstone_ttl)
    return report


async def _look_at(
    uploads: Uploads, store: RemovesUploads, upload_id: str, report: SweepReport
) -> None:
    try:
        upload = await uploads.load(upload_id)
    except UploadNotFound:
        report.remains += await store.discard_fragment(upload_id)
        return
    if uploads.is_due(upload):
        report.expired += await uploads.expire(upload_id)
    elif not upload.finished and (upload.complete or not upload.joined):
        report.finished += await uploads.make_up(upload_id)
