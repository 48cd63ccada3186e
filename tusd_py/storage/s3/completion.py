"""Completion of an upload: one object from its parts, or from its tail. It outlives its request, and may be repeated.

The response of the bucket proves little: it can be 200 and an error, or be lost after the effect, and a repeat then finds no
multipart upload. What proves it is the object: its token, which no other upload has, and its size.
"""

from __future__ import annotations

import asyncio

from tusd_py.locks.base import Fence, ensure_held
from tusd_py.storage.base import BytesNotKept, ForeignObject, StorageError, StorageUnavailable
from tusd_py.storage.s3.bucket import Bucketed
from tusd_py.storage.s3.live import Live
from tusd_py.storage.s3.object_store import (
    ObjectHead,
    ObjectNotFound,
    ObjectStoreError,
    Part,
    PreconditionFailed,
    StoreUnavailable,
)
from tusd_py.storage.s3.progress import finished_object, read_tail
from tusd_py.storage.s3.record import Record
from tusd_py.storage.s3.translation import translated
from tusd_py.storage.s3.writer import put_whole


class Completions:
    """The completions that run in this process, by upload."""

    def __init__(self, store: Bucketed) -> None:
        self._store = store
        self._running: dict[str, asyncio.Task[None]] = {}

    async def complete(self, live: Live, fence: Fence, *, finished_at: float | None = None) -> None:
        """Make the object of an upload whose bytes are all there. Raises BytesNotKept, StorageError, LeaseLost.

        finished_at: let the object tell of this finish, where that costs nothing; `Progress.finished_at` says whether it does.
        """
        if live.progress.done:
            return
        upload_id = live.record.info.id
        running = self._running.get(upload_id)
        if running is None:
            running = asyncio.ensure_future(self._complete(live, fence, finished_at))
            self._running[upload_id] = running
            running.add_done_callback(lambda _: self._running.pop(upload_id, None))
        # A client that hangs up cancels its request, not the completion.
        await asyncio.shield(running)

    async def stop(self) -> None:
        """Wait for all of them."""
        if self._running:
            await asyncio.wait(list(self._running.values()))

    async def _complete(self, live: Live, fence: Fence, finished_at: float | None) -> None:
        info = live.record.info
        with live.doubtful_after_failure(), translated(f"completing {info.id}"):
            whole = self._store.whole.data(live)
            held = live.progress.offset if whole is None else len(whole)
            if held != info.length:
                raise StorageError(f"{info.id} has {held} bytes, not {info.length}")
            ensure_held(fence)
            if live.record.multipart:
                await self._store_tail(live)
                parts = live.progress.parts
                await complete_parts(self._store, live, live.record.multipart, parts)
            else:
                await self._store_single(live, whole, fence, finished_at)

    async def _store_single(
        self, live: Live, data: bytes | None, fence: Fence, finished_at: float | None
    ) -> None:
        """Store an upload without parts. data: None if it is empty, or all in its tail, as its length was declared later."""
        tail = live.progress.tail
        if data is None and tail is not None:
            data = await read_tail(self._store.objects, tail)
        await put_whole(self._store, live, data or b"", fence=fence, finished_at=finished_at)

    async def _store_tail(self, live: Live) -> None:
        """Store the tail as the last part, where the length was declared after its bytes."""
        tail = live.progress.tail
        if tail is None:
            return
        data = await read_tail(self._store.objects, tail)
        key = self._store.layout.data(live.record.info)
        number = len(live.progress.parts) + 1
        part = await self._store.objects.upload_part(key, live.record.multipart, number, data)
        live.add(part, self._store.now())


async def complete_parts(store: Bucketed, live: Live, multipart: str, parts: list[Part]) -> None:
    """Complete a multipart upload, and check that the object is there.

    Raises BytesNotKept, StorageError, ForeignObject, ObjectStoreError.
    """
    record = live.record
    key = store.layout.data(record.info)
    failure: ObjectStoreError | None = None
    in_way = None if record.has_own_key else await object_in_way(store, record)
    try:
        await store.objects.complete(
            key,
            multipart,
            parts,
            if_match="" if in_way is None else in_way.etag,
            if_absent=in_way is None and not record.has_own_key,
        )
    except ObjectStoreError as problem:
        failure = problem
    done = await finished_object(store.objects, store.layout, record)
    if done is not None:
        done.tail_etag = live.progress.tail_etag
        live.progress = done
        return
    if isinstance(failure, StoreUnavailable):
        raise failure
    if isinstance(failure, PreconditionFailed):
        # It came after the look at it.
        await object_in_way(store, record)
        raise StorageUnavailable(f"{key} was replaced while {record.info.id} was completed")
    if failure is None:
        raise StorageUnavailable(f"{record.info.id} was completed, and its object is not there yet")
    # The bucket holds other parts than this process knows of, or none.
    store.forget(live)
    if isinstance(failure, ObjectNotFound):
        raise BytesNotKept(f"the multipart upload of {record.info.id} is gone: {failure}")
    raise BytesNotKept(f"the parts of {record.info.id} are other ones than before: {failure}")


async def object_in_way(store: Bucketed, record: Record) -> ObjectHead | None:
    """The object at the key of an upload that is not complete; None if there is none. Raises ForeignObject, ObjectStoreError.

    A store that knows no condition at completion would replace an object that was put there meanwhile.
    """
    head = await store.objects.head_or_none(store.layout.data(record.info))
    if head is not None and not record.may_replace(head):
        raise ForeignObject(f"{head.key} is an object that this server did not store")
    return head
