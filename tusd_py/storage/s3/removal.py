"""Removal of uploads: it leaves a tombstone and nothing else, also if it is interrupted anywhere.

    removing/<id>       what is to be freed, from before the removal until all of it is
    gone/<id>           the tombstone
    unpublished/<id>    an event of the removal that the outbox could not take

The upload is gone once its record is: before that, whatever there is beside it changes nothing.
"""

from __future__ import annotations

import json
from typing import TypedDict

from tusd_py.locks.base import UNFENCED, Fence
from tusd_py.storage.base import RemovalEvent, UnpublishedRemoval, Upload
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.object_store import (
    ObjectKind,
    ObjectNotFound,
    ObjectStore,
    Properties,
)
from tusd_py.storage.s3.record import RECORD_LIMIT, Record, parse, serialize

_INTERRUPTED_SECONDS = 600.0
"""Age at which a removal is taken for interrupted."""
_FINALS_SECONDS = 7 * 86_400.0
"""Time in which the creation of a final can be repeated: longer than any client tries."""


class _Event(TypedDict):
    id: str
    offset: int
    keep: bool


class S3Removal:
    """Removes uploads of one bucket. Methods raise ObjectStoreError, LeaseLost, StorageError."""

    def __init__(self, objects: ObjectStore, layout: Layout) -> None:
        self._objects = objects
        self._layout = layout

    async def is_gone(self, upload_id: str) -> bool:
        """Whether there is a tombstone."""
        try:
            await self._objects.head(self._layout.state("gone", upload_id))
        except ObjectNotFound:
            return False
        return True

    async def remove(
        self,
        record: Record,
        fence: Fence,
        *,
        keep_tombstone: bool,
        unpublished: RemovalEvent | None,
    ) -> None:
        """Remove an upload that has this record."""
        upload_id, state = record.info.id, self._layout.state
        content = serialize(record, bucket="", key=self._layout.data(record.info))
        with fence():
            pass
        if unpublished is not None:
            event = _Event(id=unpublished.event_id, offset=unpublished.offset, keep=keep_tombstone)
            document = json.dumps({"event": event, "record": content.decode()}).encode()
            await self._put(state("unpublished", upload_id), document)
        await self._put(state("removing", upload_id), content)
        if keep_tombstone:
            await self._put(state("gone", upload_id), b"")
        with fence():
            pass
        await self._objects.delete(self._layout.record(upload_id))
        await self._free(record)

    async def _free(self, record: Record) -> None:
        """Free what a removed upload occupied, and forget the removal."""
        info, key = record.info, self._layout.data(record.info)
        if record.multipart:
            await self._objects.abort(key, record.multipart)
        elif info.finished_at is None:
            # One that was begun and not recorded.
            for pending in await self._objects.pending_uploads(key):
                await self._objects.abort(key, pending.upload_id)
        await self._objects.delete(key)
        await self._objects.delete(self._layout.tail(info.id))
        await self._objects.delete(self._layout.state("removing", info.id))

    async def resume(self, upload_id: str, fence: Fence) -> None:
        """Free what a crash in the middle of a removal left."""
        key = self._layout.state("removing", upload_id)
        try:
            _, content = await self._objects.read(key, limit=RECORD_LIMIT)
            record = parse(content, upload_id=upload_id, changed_at=0.0, etag="")
        except ObjectNotFound:
            return
        with fence():
            pass
        try:
            head, current = await self._objects.read(
                self._layout.record(upload_id), limit=RECORD_LIMIT
            )
        except ObjectNotFound:
            await self._free(record)
            return
        alive = parse(current, upload_id=upload_id, changed_at=head.modified_at, etag=head.etag)
        if alive.token == record.token:
            # Interrupted before the record went: the upload goes on.
            await self._objects.delete(self._layout.state("gone", upload_id))
        elif record.multipart:
            # Of an earlier upload with this id, whose object the new one replaces.
            await self._objects.abort(self._layout.data(record.info), record.multipart)
        await self._objects.delete(key)

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

    async def forget(self, upload_id: str) -> None:
        """Forget an event that could not be published before."""
        await self._objects.delete(self._layout.state("unpublished", upload_id))

    # Sweeps

    async def tidy(self, now: float, *, tombstone_ttl: float) -> int:
        """Remove old tombstones and what crashes left; return how many."""
        removed = await self._remove_old("gone", now - tombstone_ttl)
        removed += await self._remove_old("finals", now - _FINALS_SECONDS)
        removed += await self._remove_old("probe", now - _INTERRUPTED_SECONDS)
        async for page in self._objects.list(self._layout.directory("removing")):
            for listed in page:
                if listed.modified_at < now - _INTERRUPTED_SECONDS:
                    await self.resume(self._layout.names(listed.key)[-1], UNFENCED)
                    removed += 1
        return removed + await self._remove_marks("awaiting") + await self._remove_marks("missing")

    async def _remove_old(self, directory: str, before: float) -> int:
        removed = 0
        async for page in self._objects.list(self._layout.directory(directory)):
            for listed in page:
                if listed.modified_at < before:
                    await self._objects.delete(listed.key)
                    removed += 1
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

    async def _put(self, key: str, content: bytes) -> None:
        await self._objects.put(
            key, content, Properties("application/json"), kind=ObjectKind.RECORD
        )
