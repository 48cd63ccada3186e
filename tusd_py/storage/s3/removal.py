"""Removal of uploads: it leaves a tombstone and nothing else, also if it is interrupted anywhere.

    freeing/<id>/<token>    what is to be freed, from before the removal until nothing is left and nothing can come back
    removing/<id>           the same of earlier builds, some of which put the token behind it
    gone/<id>               the tombstone, with what `Removed` tells; that of the version before is empty
    unpublished/<id>        an event of the removal that the outbox could not take

A store whose keys are paths of files (versitygw) cannot have both `removing/<id>` and a key below it: hence the other name.

The upload is gone once its record is: before that, whatever there is beside it changes nothing. A server that stood still may
store bytes of it after that. So what an unfinished upload occupied is freed a second time by a later sweep, which looks for
multipart uploads with exactly its key, as some stores list them by nothing else. What a later upload with the same id makes
it leave is freed by a sweep after that one: so each upload has an object of its own there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypedDict

from tusd_py.locks.base import UNFENCED, Fence, LeaseLost, Locks
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
from tusd_py.storage.s3.layout import STATE, TAIL, Layout
from tusd_py.storage.s3.object_store import (
    ListedObject,
    ObjectKind,
    ObjectNotFound,
    ObjectStore,
    ObjectStoreError,
    PreconditionFailed,
    Properties,
    StoreUnavailable,
)
from tusd_py.storage.s3.places import IfFree, Places, unfreed
from tusd_py.storage.s3.progress import finish_of
from tusd_py.storage.s3.record import RECORD_LIMIT, TOKEN, Record, parse, serialize

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
            _, content = await self._objects.read(
                self._layout.state("gone", upload_id), limit=RECORD_LIMIT
            )
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
        with fence():
            pass
        if unpublished is not None:
            event = _Event(id=unpublished.event_id, offset=unpublished.offset, keep=keep_tombstone)
            document = json.dumps({"event": event, "record": content.decode()}).encode()
            await self._put(state("unpublished", upload_id), document)
        freeing = state("freeing", upload_id, record.token)
        await self._put(freeing, content)
        if keep_tombstone:
            await self._put_tombstone(record, event_id, fence)

        async def look() -> str:
            with fence():
                pass
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
            await self._put(key, content, if_absent=True)
        except PreconditionFailed:
            # Of a removal that was interrupted, or this one, whose response was lost.
            head, stored = await self._objects.read(key, limit=RECORD_LIMIT)
            if stored == content:
                return
            with fence():
                pass
            try:
                await self._put(key, content, if_match=head.etag)
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
        async for key in unfreed(self._objects, self._layout, upload_id):
            await self._resume(upload_id, key, fence)

    async def _resume(self, upload_id: str, freeing: str, fence: Fence) -> bool:
        """Go on with one removal; return whether nothing of it is left to do. freeing: the key of what it is to free."""
        try:
            _, content = await self._objects.read(freeing, limit=RECORD_LIMIT)
            record = parse(content, upload_id=upload_id, changed_at=0.0, etag="")
        except ObjectNotFound:
            return True
        with fence():
            pass
        if await self._is_alive(record):
            # Interrupted before the record went: the upload goes on, unless it is removed once more by now.
            for mark in (self._layout.state("gone", upload_id), freeing):
                await self._delete_while(mark, lambda: self._is_alive(record))
            return True
        if not await self._free(record):
            return False
        await self._objects.delete(freeing)
        return True

    async def _is_alive(self, record: Record) -> bool:
        """Whether an upload that was to be removed still has its record. Raises ObjectStoreError, StorageError."""
        found = await stored_record(self._objects, self._layout, record.info.id)
        return found is not None and found.token == record.token

    async def _delete_while(self, key: str, may: Callable[[], Awaitable[bool]]) -> None:
        """Remove an object that is there before `may` is asked, if that says so."""

        async def look() -> str:
            etag = await self._etag(key)
            return etag if etag and await may() else ""

        await self._objects.delete_if(key, look)

    async def _etag(self, key: str) -> str:
        """The etag of an object; empty if there is none."""
        try:
            return (await self._objects.head(key)).etag
        except ObjectNotFound:
            return ""

    async def _delete_seen(self, seen: ListedObject) -> bool:
        """Remove an object unless it was replaced since it was seen; return whether it was there."""

        async def look() -> str:
            return seen.etag if await self._etag(seen.key) == seen.etag else ""

        return await self._objects.delete_if(seen.key, look)

    # Events that could not be published

    async def unpublished(self) -> list[UnpublishedRemoval]:
        found: list[UnpublishedRemoval] = []
        async for page in self._objects.list(self._layout.directory("unpublished")):
            for listed in page:
                upload_id = self._layout.names(listed.key)[-1]
                try:
                    _, content = await self._objects.read(listed.key, limit=RECORD_LIMIT)
                except ObjectNotFound:
                    continue
                document = json.loads(content)
                event: _Event = document["event"]
                record = parse(
                    document["record"].encode(),
                    upload_id=upload_id,
                    changed_at=listed.modified_at,
                    etag="",
                )
                upload = Upload(record.info, event["offset"], listed.modified_at)
                found.append(
                    UnpublishedRemoval(
                        upload, RemovalEvent(event["id"], event["offset"]), event["keep"]
                    )
                )
        return found

    async def forget(self, upload_id: str, event_id: str) -> None:
        """Forget an event that could not be published before, and none of a later upload with this id."""
        key = self._layout.state("unpublished", upload_id)

        async def look() -> str:
            try:
                head, content = await self._objects.read(key, limit=RECORD_LIMIT)
            except ObjectNotFound:
                return ""
            return head.etag if json.loads(content)["event"]["id"] == event_id else ""

        await self._objects.delete_if(key, look)

    # Sweeps

    async def tidy(self, now: float, *, tombstone_ttl: float, locks: Locks | None) -> int:
        """Remove old tombstones and what crashes left; return how many. locks: see `Store.tidy`."""
        if_free = partial(_if_free, locks)
        removed = await self._remove_old("gone", now - tombstone_ttl)
        removed += await self._remove_old("finals", now - _FINALS_SECONDS)
        removed += await self._remove_old("probe", now - _INTERRUPTED_SECONDS)
        removed += await self._places.tidy(now - _INTERRUPTED_SECONDS, if_free)
        for directory in ("freeing", "removing"):
            removed += await self._free_left(self._layout.directory(directory), now, if_free)
        removed += await self._remove_stale_tails(now, if_free)
        return removed + await self._remove_marks("awaiting") + await self._remove_marks("missing")

    async def _free_left(self, directory: str, now: float, if_free: IfFree) -> int:
        """Go on with removals; return how many have nothing left to do."""
        removed = 0
        async for listed in self._older(directory, now):
            # Behind the name of the directory; behind it the token, but for the oldest.
            upload_id = self._layout.names(listed.key)[1]
            try:
                async with if_free(upload_id) as fence:
                    if fence is not None:
                        removed += await self._resume(upload_id, listed.key, fence)
            except StoreUnavailable:
                raise
            except LeaseLost:
                continue
            except (ObjectStoreError, StorageError) as problem:
                logger.warning("what %s occupied cannot be freed: %s", upload_id, problem)
        return removed

    async def _older(self, prefix: str, now: float) -> AsyncIterator[ListedObject]:
        async for page in self._objects.list(prefix):
            for listed in page:
                if listed.modified_at < now - _INTERRUPTED_SECONDS:
                    yield listed

    async def _remove_stale_tails(self, now: float, if_free: IfFree) -> int:
        """Remove the tails of finished uploads, and those that a server stored late, of removed ones."""
        removed = 0
        state = self._layout.info_prefix + STATE
        async for listed in self._older(self._layout.info_prefix, now):
            upload_id = self._layout.id_of(listed.key, TAIL)
            if upload_id is None or listed.key.startswith(state):
                continue
            if await self._needs_no_tail(upload_id):
                with suppress(LeaseLost):
                    async with if_free(upload_id) as fence:
                        if fence is not None:
                            look = partial(self._stale_tail, upload_id, listed, fence)
                            removed += await self._objects.delete_if(listed.key, look)
        return removed

    async def _stale_tail(self, upload_id: str, tail: ListedObject, fence: Fence) -> str:
        """The etag of a tail that nobody needs; empty if it was replaced, or somebody may need it. Raises LeaseLost."""
        try:
            head = await self._objects.head(tail.key)
        except ObjectNotFound:
            return ""
        if TOKEN not in head.properties.metadata or head.etag != tail.etag:
            return ""
        # Another upload may have begun under this id before the tail was looked at.
        if not await self._needs_no_tail(upload_id):
            return ""
        with fence():
            pass
        return head.etag

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
        async for page in self._objects.list(self._layout.directory(directory)):
            for listed in page:
                if listed.modified_at < before:
                    removed += await self._delete_seen(listed)
        return removed

    async def _remove_marks(self, directory: str) -> int:
        """Remove what is kept about uploads that have no record any more: the last name of each key."""
        removed = 0
        async for page in self._objects.list(self._layout.directory(directory)):
            for listed in page:
                upload_id = self._layout.names(listed.key)[-1]
                try:
                    await self._objects.head(self._layout.record(upload_id))
                except ObjectNotFound:
                    await self._objects.delete(listed.key)
                    removed += 1
        return removed

    async def _put(
        self, key: str, content: bytes, *, if_absent: bool = False, if_match: str = ""
    ) -> None:
        await self._objects.put(
            key,
            content,
            Properties("application/json"),
            kind=ObjectKind.RECORD,
            if_absent=if_absent,
            if_match=if_match,
        )


@asynccontextmanager
async def _if_free(locks: Locks | None, upload_id: str) -> AsyncIterator[Fence | None]:
    """Hold the lock of an upload for the block, and give its fence; None if it is held."""
    if locks is None:
        yield UNFENCED
        return
    async with locks.try_acquire_many([upload_id]) as leases:
        lease = leases.get(upload_id)
        yield None if lease is None else lease.fence


def _removed(content: bytes) -> Removed | None:
    """What a tombstone tells; None for one that tells nothing."""
    try:
        told: _Tombstone = json.loads(content)
        return Removed(float(told["created_at"]), bool(told["finished"]), str(told["event"]))
    except (ValueError, TypeError, KeyError):
        return None
