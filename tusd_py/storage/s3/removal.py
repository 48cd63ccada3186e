"""Removal of uploads: it leaves a tombstone and nothing else, also if it is interrupted anywhere.

    freeing/<id>/<token>    what is to be freed, from before the removal until nothing is left and nothing can come back
    gone/<id>               the tombstone, with what `Removed` tells
    unpublished/<id>        an event of the removal that the outbox could not take

The upload is gone once its record is: before that, whatever there is beside it changes nothing. A server that stood still may
store bytes of it after that. So what an unfinished upload occupied is freed a second time by a later sweep, which looks for
multipart uploads with exactly its key, as some stores list them by nothing else. What a later upload with the same id makes
it leave is freed by a sweep after that one: so each upload has an object of its own there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypedDict

from tusd_py.locks.base import UNFENCED, Fence, LeaseLost, Locks, ensure_held
from tusd_py.storage.base import (
    RemovalEvent,
    Removed,
    StorageError,
    UnpublishedRemoval,
    Upload,
    UploadGone,
    is_random_id,
)
from tusd_py.storage.s3.freeing import Freeing, own_tail, stored_record
from tusd_py.storage.s3.layout import TAIL, Layout
from tusd_py.storage.s3.object_store import (
    JSON,
    ListedObject,
    ObjectNotFound,
    ObjectStoreError,
    PreconditionFailed,
    StoreUnavailable,
)
from tusd_py.storage.s3.places import Exclusively, Places
from tusd_py.storage.s3.progress import finish_of
from tusd_py.storage.s3.record import TOKEN, Record, parse, serialize
from tusd_py.storage.s3.requests import ObjectStore

logger = logging.getLogger(__name__)

_INTERRUPTED_SECONDS = 600.0
"""Age of what can be freed: no request that was under way when it was stored still is."""
_FINALS_SECONDS = 7 * 86_400.0
"""Time in which the creation of a final can be repeated: longer than any client tries."""


class _Event(TypedDict):
    id: str
    offset: int
    keep: bool


class _Tombstone(TypedDict):
    created_at: float
    finished: bool
    event: str


class S3Removal:
    """Removes uploads of one bucket. Methods raise ObjectStoreError, LeaseLost, StorageError.

    keeps_finished: see `S3Options`.
    """

    def __init__(
        self, objects: ObjectStore, layout: Layout, places: Places, *, keeps_finished: bool
    ) -> None:
        self._keeps_finished = keeps_finished
        self._objects = objects
        self._layout = layout
        self._places = places

    async def gone(self, upload_id: str) -> UploadGone | None:
        """The error for a removed upload; None if there is no tombstone."""
        try:
            _, content = await self._objects.read(self._layout.state("gone", upload_id))
        except ObjectNotFound:
            return None
        return UploadGone(f"{upload_id} was removed", _removed(content))

    async def remove(
        self,
        record: Record,
        fence: Fence,
        *,
        event_id: str,
        keep_tombstone: bool,
        unpublished: RemovalEvent | None,
        now: float,
    ) -> None:
        """Remove an upload that has this record. now: seconds since the epoch."""
        upload_id, state = record.info.id, self._layout.state
        storage = self._layout.storage(record.info.location or upload_id, bucket="")
        content = serialize(record, storage=storage)
        ensure_held(fence)
        if unpublished is not None:
            event = _Event(id=unpublished.event_id, offset=unpublished.offset, keep=keep_tombstone)
            document = json.dumps({"event": event, "record": content.decode()}).encode()
            await self._objects.put(state("unpublished", upload_id), document, JSON)
        freeing = state("freeing", upload_id, record.token)
        await self._objects.put(freeing, content, JSON)
        if keep_tombstone:
            await self._put_tombstone(record, event_id, fence)

        async def look() -> str:
            ensure_held(fence)
            found = await stored_record(self._objects, self._layout, upload_id)
            return found.etag if found is not None and found.token == record.token else ""

        await self._objects.delete_if(self._layout.record(upload_id), look)
        try:
            is_free = await self._free(record)
            finished_at = record.info.finished_at
            is_old = finished_at is not None and finished_at < now - _INTERRUPTED_SECONDS
            if is_free and (is_old or not keep_tombstone):
                # Nobody has bytes of it that could come late.
                await self._objects.delete(freeing)
        except (ObjectStoreError, StorageError) as problem:
            logger.warning("what %s occupied is freed by a later sweep: %s", upload_id, problem)

    async def _put_tombstone(self, record: Record, event_id: str, fence: Fence) -> None:
        """Store the tombstone. Raises LeaseLost if another holder stores one meanwhile: that tells how the upload was."""
        info = record.info
        key = self._layout.state("gone", info.id)
        told = _Tombstone(
            created_at=info.created_at, finished=info.finished_at is not None, event=event_id
        )
        content = json.dumps(told).encode()
        try:
            await self._objects.put(key, content, JSON, if_absent=True)
        except PreconditionFailed:
            # Of a removal that was interrupted, or this one, whose response was lost.
            head, stored = await self._objects.read(key)
            if stored == content:
                return
            ensure_held(fence)
            try:
                await self._objects.put(key, content, JSON, if_match=head.etag)
            except PreconditionFailed:
                raise LeaseLost(f"another holder removes {info.id}") from None

    async def _free(self, record: Record) -> bool:
        """Free what a removed upload occupied; return whether nothing of it stays because of a later one with its id."""
        info = record.info
        is_kept = self._keeps_finished and info.finished_path and info.finished_at is not None
        freeing = Freeing(self._objects, self._layout, self._places, record)
        return await freeing.run(keeps_object=bool(is_kept))

    async def remove_tail(self, record: Record, known: str) -> None:
        """Remove the tail of an upload that was just finished, and may be removed by now, and its id another one's.

        known: the etag of its tail, as far as this process knows; empty for none. No other upload has a random id, which saves
        a look.
        """
        key, is_random = self._layout.tail(record.info.id), is_random_id(record.info.id)
        if is_random and not known:
            await self._objects.delete(key)
            return
        etags = [known] if is_random else []

        async def look() -> str:
            return etags.pop() if etags else await own_tail(self._objects, self._layout, record)

        await self._objects.delete_if(key, look)

    async def resume(self, upload_id: str, fence: Fence) -> None:
        """Free what crashes in the middle of removals of uploads with this id left."""
        async for listed in self._objects.each(self._layout.directory("freeing", upload_id)):
            await self._resume(upload_id, listed.key, fence)

    async def _resume(self, upload_id: str, freeing: str, fence: Fence) -> bool:
        """Go on with one removal; return whether nothing of it is left to do. freeing: the key of what it is to free."""
        try:
            _, content = await self._objects.read(freeing)
            record = parse(content, upload_id=upload_id, changed_at=0.0, etag="")
        except ObjectNotFound:
            return True
        ensure_held(fence)
        if await self._is_alive(record):
            # Interrupted before the record went: the upload goes on, unless it is removed once more by now.
            for mark in (self._layout.state("gone", upload_id), freeing):
                await self._take_back(mark, record)
            return True
        if not await self._free(record):
            return False
        await self._objects.delete(freeing)
        return True

    async def _is_alive(self, record: Record) -> bool:
        """Whether an upload that was to be removed still has its record. Raises ObjectStoreError, StorageError."""
        found = await stored_record(self._objects, self._layout, record.info.id)
        return found is not None and found.token == record.token

    async def _take_back(self, mark: str, record: Record) -> None:
        """Remove an object of a removal that was there before its upload was seen to be alive."""

        async def look() -> str:
            head = await self._objects.head_or_none(mark)
            return head.etag if head is not None and await self._is_alive(record) else ""

        await self._objects.delete_if(mark, look)

    # Events that could not be published

    async def unpublished(self) -> list[UnpublishedRemoval]:
        found: list[UnpublishedRemoval] = []
        async for listed in self._objects.each(self._layout.directory("unpublished")):
            upload_id, stored_at = self._layout.names(listed.key)[-1], listed.modified_at
            try:
                _, content = await self._objects.read(listed.key)
            except ObjectNotFound:
                continue
            document = json.loads(content)
            event: _Event = document["event"]
            content = document["record"].encode()
            record = parse(content, upload_id=upload_id, changed_at=stored_at, etag="")
            upload = Upload(record.info, event["offset"], stored_at)
            told = RemovalEvent(event["id"], event["offset"])
            found.append(UnpublishedRemoval(upload, told, event["keep"]))
        return found

    async def forget(self, upload_id: str, event_id: str) -> None:
        """Forget an event that could not be published before, and none of a later upload with this id."""
        look = partial(self._etag_of_unpublished, upload_id, event_id)
        await self._objects.delete_if(self._layout.state("unpublished", upload_id), look)

    async def is_unpublished(self, upload_id: str, event_id: str) -> bool:
        """Whether an event is still one that could not be published."""
        return await self._etag_of_unpublished(upload_id, event_id) != ""

    async def _etag_of_unpublished(self, upload_id: str, event_id: str) -> str:
        """The etag of the object with an event that could not be published; empty if there is none."""
        try:
            head, content = await self._objects.read(self._layout.state("unpublished", upload_id))
        except ObjectNotFound:
            return ""
        return head.etag if json.loads(content)["event"]["id"] == event_id else ""

    # Sweeps

    async def tidy(self, now: float, *, tombstone_ttl: float, locks: Locks | None) -> int:
        """Remove old tombstones and what crashes left; return how many. locks: see `Store.tidy`."""
        exclusively, before = partial(_exclusively, locks), now - _INTERRUPTED_SECONDS
        removed = await self._remove_old("gone", now - tombstone_ttl)
        removed += await self._remove_old("finals", now - _FINALS_SECONDS)
        removed += await self._remove_old("probe", before)
        removed += await self._places.tidy(before, exclusively)
        removed += await self._free_left(before, exclusively)
        removed += await self._remove_stale_tails(before, exclusively)
        return removed + await self._remove_marks("awaiting") + await self._remove_marks("missing")

    async def _free_left(self, before: float, exclusively: Exclusively) -> int:
        """Go on with removals; return how many have nothing left to do."""
        removed = 0
        async for listed in self._objects.each(self._layout.directory("freeing"), before=before):
            upload_id = self._layout.names(listed.key)[1]
            resume = partial(self._resume, upload_id, listed.key)
            try:
                removed += await exclusively(upload_id, resume)
            except StoreUnavailable:
                raise
            except (ObjectStoreError, StorageError) as problem:
                logger.warning("what %s occupied cannot be freed: %s", upload_id, problem)
        return removed

    async def _remove_stale_tails(self, before: float, exclusively: Exclusively) -> int:
        """Remove the tails of finished uploads, and those that a server stored late, of removed ones."""
        removed = 0
        async for listed in self._objects.each(self._layout.info_prefix, before=before):
            upload_id = self._layout.id_of(listed.key, TAIL)
            if upload_id is not None and await self._needs_no_tail(upload_id):
                remove = partial(self._remove_stale_tail, upload_id, listed)
                removed += await exclusively(upload_id, remove)
        return removed

    async def _remove_stale_tail(self, upload_id: str, tail: ListedObject, fence: Fence) -> bool:
        """Remove a tail, unless it was replaced or may still be needed. Raises LeaseLost."""

        async def look() -> str:
            head = await self._objects.head_or_none(tail.key)
            if head is None or head.etag != tail.etag or TOKEN not in head.properties.metadata:
                return ""
            # Another upload may have begun under this id before the tail was looked at.
            if not await self._needs_no_tail(upload_id):
                return ""
            ensure_held(fence)
            return head.etag

        return await self._objects.delete_if(tail.key, look)

    async def _needs_no_tail(self, upload_id: str) -> bool:
        """Whether there is no upload with this id, or one that is finished."""
        try:
            record = await stored_record(self._objects, self._layout, upload_id)
        except StorageError:
            # Not a record of ours.
            return False
        return record is None or await finish_of(self._objects, self._layout, record) is not None

    async def _remove_old(self, directory: str, before: float) -> int:
        removed = 0
        async for listed in self._objects.each(self._layout.directory(directory), before=before):
            removed += await self._objects.delete_seen(listed.key, listed.etag)
        return removed

    async def _remove_marks(self, directory: str) -> int:
        """Remove what is kept about uploads that have no record any more: the last name of each key."""
        removed = 0
        async for listed in self._objects.each(self._layout.directory(directory)):
            record = self._layout.record(self._layout.names(listed.key)[-1])
            if await self._objects.head_or_none(record) is None:
                await self._objects.delete(listed.key)
                removed += 1
        return removed


async def _exclusively(
    locks: Locks | None, upload_id: str, change: Callable[[Fence], Awaitable[bool]]
) -> bool:
    """Make a change under the lock of an upload, and return what that returns; False if the lock is held, or was lost."""
    if locks is None:
        return await change(UNFENCED)
    with suppress(LeaseLost):
        async with locks.try_acquire_many([upload_id]) as leases:
            lease = leases.get(upload_id)
            return lease is not None and await change(lease.fence)
    return False


def _removed(content: bytes) -> Removed | None:
    """What a tombstone tells; None for one that tells nothing."""
    try:
        told: _Tombstone = json.loads(content)
        return Removed(float(told["created_at"]), bool(told["finished"]), str(told["event"]))
    except (ValueError, TypeError, KeyError):
        return None
