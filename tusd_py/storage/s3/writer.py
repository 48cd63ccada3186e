"""Writers of an upload in a bucket: bytes gather in parts, parts are sent while more arrives, the rest becomes the tail.

A buffer holds the part that is being filled, from its first byte: what was in the tail before is fetched when the first new
byte comes. Whole parts are sent at once, several at a time. The tail is put into the bucket at the end of the body, now and
then while a slow one lasts, and when memory is short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace

from tusd_py.locks.base import Fence, LeaseLost, ensure_held
from tusd_py.protocol.checksum import Checksum
from tusd_py.storage.base import ForeignObject, StorageError, StorageFull, Upload
from tusd_py.storage.s3.bucket import Bucketed
from tusd_py.storage.s3.live import Live
from tusd_py.storage.s3.object_store import (
    ObjectHead,
    ObjectKind,
    ObjectNotFound,
    ObjectStoreError,
    PreconditionFailed,
    Properties,
)
from tusd_py.storage.s3.progress import (
    Progress,
    part_size,
    read_tail,
    tail_properties,
    tail_time,
)
from tusd_py.storage.s3.record import Record
from tusd_py.storage.s3.translation import storage_error, translated

_OFFER_BYTES = 1024 * 1024
"""Most that a buffer is offered for at a time."""


class S3Writer:
    """See `Writer` and `Holder`. One request's bytes, from `upload.offset` on."""

    needs_disk = False

    def __init__(
        self,
        store: Bucketed,
        upload: Upload,
        live: Live,
        fence: Fence,
        *,
        may_discard: bool,
        may_be_slow: bool,
    ) -> None:
        """may_discard: the body may turn out to be too long, so that the tail has to be put back.

        may_be_slow: the bytes come in from a client, so that those that have arrived are stored from time to time.
        """
        self._store = store
        self._may_discard = may_discard
        self._may_be_slow = may_be_slow
        self._old_tail = live.progress.tail
        self._live = live
        self._fence = fence
        self._began = upload.offset
        self._added = 0
        plan = live.record.plan
        self._number = plan.number(upload.offset)
        self._first = self._number
        self._filled = upload.offset - plan.start(self._number)
        self._buffer: bytearray | None = bytearray() if not self._filled else None
        """None while its bytes are in the bucket only."""
        self._taken = 0
        """Bytes of the buffer that the spool counts."""
        self._unsaved = 0
        """Bytes of the buffer that are not in the bucket."""
        self._most_sending = store.options.concurrent_parts
        self._sending: set[asyncio.Task[None]] = set()
        self._sent: set[int] = set()
        self._problem: BaseException | None = None
        self._busy: asyncio.Lock = asyncio.Lock()
        self._first_tail: bytes | None = None
        self._tail_was_replaced = False
        self._is_over = False
        self._is_closing = False
        """Whether the bytes in the buffer are its own end's to store, and no flush's."""
        self._is_too_long = False
        self._flushing: asyncio.Task[None] | None = None
        self._take_tail()
        store.spool.enter(self)

    @property
    def offset(self) -> int:
        return self._began + self._added

    @property
    def kept(self) -> int:
        """What the bucket has acknowledged. Parts that replace those of a refused request count once the record says so."""
        record, offset = self._live.record, self._live.progress.offset
        return min(offset, record.plan.start(record.below)) if record.below else offset

    # Bytes in

    def get_buffer(self) -> memoryview | None:
        if self._buffer is None or self._busy.locked() or self._problem is not None:
            return None
        self._reserve(1)
        room = min(len(self._buffer) - self._filled, _OFFER_BYTES)
        return memoryview(self._buffer)[self._filled : self._filled + room] if room else None

    def write(self, data: memoryview) -> Awaitable[None] | None:
        self._raise_problem()
        with self._fence():
            pass
        if self._buffer is None or self._busy.locked():
            return self._write_later(bytes(data))
        return self._take(data)

    async def _write_later(self, data: bytes) -> None:
        async with self._busy:
            await self._fetch()
        rest = self._take(memoryview(data))
        if rest is not None:
            await rest

    def note_arrival(self) -> None:
        """Remember in this process that bytes arrived just now: the bucket learns of them only with a part or the tail."""
        self._live.progress.changed_at = self._store.now()

    def _take(self, data: memoryview) -> Awaitable[None] | None:
        """Put bytes into the buffer, and send what is whole."""
        self.note_arrival()
        while data.nbytes:
            self._reserve(data.nbytes)
            buffer = self._buffer
            if buffer is None:
                raise StorageError("bytes were written to a buffer that is not there")
            count = min(data.nbytes, self._size - self._filled)
            if not count:
                # Behind the end of the upload: its caller discards all of it.
                self._added += data.nbytes
                self._is_too_long = True
                return None
            if data.obj is not buffer:
                buffer[self._filled : self._filled + count] = data[:count]
            self._filled += count
            self._unsaved += count
            self._added += count
            self._taken += count
            self._store.spool.take(count)
            data = data[count:]
            if self._filled == self._size and not self._is_last:
                self._send()
        if self._may_be_slow and self._flushing is None and self._unsaved:
            self._flushing = asyncio.ensure_future(self._flush_regularly())
        if len(self._sending) > self._most_sending or self._store.spool.is_full:
            return self._wait_for_room()
        return None

    @property
    def _size(self) -> int:
        """Bytes of the current part when it is whole."""
        return part_size(self._live.record, self._number)

    @property
    def _is_last(self) -> bool:
        """Whether the upload ends with the current part: how it is stored is decided at the end of the body."""
        length = self._live.record.info.length
        return (
            length is not None and self._live.record.plan.start(self._number) + self._size >= length
        )

    def _reserve(self, count: int) -> None:
        """Make the buffer large enough; memory that is not written to costs nothing."""
        wanted = min(self._size, max(self._filled + count, 2 * self._filled, 65_536))
        buffer = self._buffer
        if buffer is None or len(buffer) >= min(self._size, self._filled + count):
            return
        is_whole = wanted > self._size // 4
        larger = self._store.spool.buffer(self._size) if is_whole else bytearray(wanted)
        larger[: self._filled] = memoryview(buffer)[: self._filled]
        self._buffer = larger

    async def _wait_for_room(self) -> None:
        while len(self._sending) > self._most_sending:
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        await self._store.spool.wait()
        self._raise_problem()

    def _raise_problem(self) -> None:
        if isinstance(self._problem, ObjectStoreError):
            raise storage_error(self._problem, f"storing {self._live.record.info.id}")
        if self._problem is not None:
            raise self._problem

    # Bytes out

    def _send(self) -> None:
        """Send the part in the buffer, which is whole, and begin the next one. Raises StorageFull."""
        buffer, size = self._buffer, self._filled
        most = self._store.options.max_parts
        if self._number > most:
            raise StorageFull(
                f"{self._live.record.info.id} has {most} parts, more than which the bucket does not take"
            )
        if buffer is None:
            raise StorageError("there is no part to send")
        body = buffer if len(buffer) == size else bytes(memoryview(buffer)[:size])
        task = asyncio.ensure_future(self._send_part(self._number, body, self._taken))
        self._sending.add(task)
        self._sent.add(self._number)
        task.add_done_callback(self._sending.discard)
        self._number += 1
        self._buffer, self._filled, self._taken, self._unsaved = bytearray(), 0, 0, 0

    async def _send_part(self, number: int, body: bytes | bytearray, taken: int) -> None:
        live, store = self._live, self._store
        try:
            upload_id = await store.multipart(live, self._fence)
            ensure_held(self._fence)
            key = store.layout.data(live.record.info)
            part = await store.objects.upload_part(key, upload_id, number, body)
            live.add(part, store.now())
            if isinstance(body, bytearray):
                store.spool.reuse(body)
        except (ObjectStoreError, StorageError, LeaseLost) as problem:
            self._problem = self._problem or problem
        finally:
            store.spool.give_back(taken)

    async def _put_tail(self) -> None:
        """Put the bytes of the buffer into the bucket. Only once all parts before them are there."""
        live, store = self._live, self._store
        start = live.record.plan.start(self._number)
        if live.progress.end != start or self._buffer is None:
            return
        # First, as a tail behind parts that do not count would leave less than was acknowledged.
        await self._count_replaced()
        ensure_held(self._fence)
        # No copy, as all writers may do this at once when a network fails. Nothing is written to these bytes meanwhile.
        head = await put_tail(store, live, start, memoryview(self._buffer)[: self._filled])
        self._tail_was_replaced = True
        self._unsaved = 0
        live.progress.tail = head
        live.progress.changed_at = head.modified_at

    def _take_tail(self) -> None:
        """Take the tail that this process stored last over, if it is still in memory."""
        tail = self._live.progress.tail
        if self._buffer is not None or tail is None or tail.size != self._filled:
            return
        buffer = self._store.tails.take(self._live.record.info.id, tail.etag, tail.size)
        if buffer is None:
            return
        if self._may_discard:
            self._first_tail = bytes(memoryview(buffer)[: tail.size])
        self._buffer, self._taken = buffer, tail.size

    def _leave_tail(self) -> None:
        """Leave the bytes of the tail to the next request, if the buffer has just these."""
        tail = self._live.progress.tail
        if self._buffer is None or tail is None or self._unsaved or self._taken != tail.size:
            return
        if tail.size != self._filled:
            return
        self._store.tails.keep(self._live.record.info.id, tail.etag, self._buffer, tail.size)
        self._taken = 0

    async def _fetch(self) -> None:
        """Get the bytes of the tail back into the buffer."""
        tail = self._live.progress.tail
        if self._buffer is not None:
            return
        if tail is None or tail.size != self._filled:
            raise StorageError(f"{self._live.record.info.id}: its tail is another one than before")
        with translated(f"reading the tail of {self._live.record.info.id}"):
            data = await read_tail(self._store.objects, tail)
        if self._may_discard and self._first_tail is None and not self._added:
            self._first_tail = data
        self._buffer = bytearray(data)
        self._taken = len(data)
        self._store.spool.take(len(data))

    # Slow bodies, and short memory

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._store.options.flush_seconds)
            if self._unsaved:
                await self._flush(drop=False)

    async def _flush(self, *, drop: bool) -> None:
        async with self._busy:
            if self._is_over or self._is_closing:
                return
            try:
                if self._sending:
                    await asyncio.wait(list(self._sending))
                if self._problem is None:
                    await self._put_tail()
                    if drop and not self._unsaved and self._filled:
                        self._let_go()
            except (ObjectStoreError, StorageError, LeaseLost) as problem:
                self._problem = self._problem or problem

    @property
    def idle_bytes(self) -> int:
        is_busy = self._busy.locked() or self._is_over or self._is_closing
        return 0 if is_busy else self._taken

    @property
    def part_bytes(self) -> int:
        return self._size

    async def relieve(self) -> None:
        await self._flush(drop=True)

    def _let_go(self) -> None:
        self._store.spool.give_back(self._taken)
        self._buffer, self._taken = None, 0

    # The end

    async def verify(self, checksum: Checksum) -> bool:
        raise StorageError("the bytes of this writer count as they arrive")

    def abandon(self) -> None:
        self._is_over = True

    async def discard(self) -> None:
        """Void the parts that were sent, which cannot be removed, and put the first tail back."""
        with self._live.doubtful_after_failure():
            await self._take_back()

    async def _take_back(self) -> None:
        await self._stop_sending()
        ensure_held(self._fence)
        live = self._live
        self._is_over = True
        # First: until the parts that were sent are void, they have the bytes of the first tail too.
        if self._tail_was_replaced:
            await self._restore_tail()
        else:
            live.progress.tail = self._old_tail
        if self._sent:
            record = live.record
            below, void_to = self._first, max(self._sent | {record.void_to})
            if record.below:
                below = min(below, record.below)
            await self._store.save_record(
                live, replace(record, below=below, void_to=void_to), self._fence
            )
            kept = live.progress.parts[: self._first - 1]
            live.arrived.clear()
            live.progress.parts = kept
            live.progress.end = sum(part.size for part in kept)
        self._added = 0

    async def _restore_tail(self) -> None:
        """Put the first tail back; if there was none, one without bytes, as a tail that is there would count."""
        live, start = self._live, self._live.record.plan.start(self._first)
        size = self._began - start
        data = self._first_tail if size else b""
        if data is None or len(data) != size:
            raise StorageError(f"the tail of {live.record.info.id} cannot be put back")
        ensure_held(self._fence)
        with translated(f"putting the tail of {live.record.info.id} back"):
            tail = await put_tail(self._store, live, start, data)
        live.progress.tail = tail if size else None

    async def _stop_sending(self) -> None:
        self._is_closing = True
        # Not in the middle of a flush, whose outcome would be unknown.
        async with self._busy:
            pass
        if self._flushing is not None:
            self._flushing.cancel()
            with suppress(asyncio.CancelledError):
                await self._flushing
        if self._sending:
            await asyncio.wait(list(self._sending))

    async def close(self, *, sync: bool, finishing: bool = False) -> None:
        try:
            await self._stop_sending()
            if not self._is_over and self._added:
                await self._settle(finishing=finishing)
            # The store may have forgotten the upload meanwhile, and have looked it up again before these bytes were there.
            with suppress(LeaseLost):
                self._store.remember(self._live, self._fence)
            if not self._is_over:
                self._leave_tail()
        except BaseException:
            self._store.forget(self._live)
            raise
        finally:
            if self._problem is not None:
                self._store.forget(self._live)
            self._is_over = True
            self._store.spool.leave(self)
            self._store.spool.give_back(self._taken)
            self._taken, self._buffer = 0, None
            # Its traceback refers to this writer: a reference cycle.
            self._problem = None

    async def _settle(self, *, finishing: bool) -> None:
        """Make the bytes in the buffer count: as the last part, as the whole object, or as the tail."""
        self._raise_problem()
        live, length = self._live, self._live.record.info.length
        if self._is_too_long:
            raise StorageError(f"{live.record.info.id} got more bytes than its length")
        with translated(f"storing {live.record.info.id}"):
            if length is not None and self.offset == length and self._filled:
                await self._store_end(finishing=finishing)
            elif self._filled and self._unsaved:
                await self._put_tail()
        self._raise_problem()
        await self._count_replaced()

    async def _store_end(self, *, finishing: bool) -> None:
        live, store = self._live, self._store
        async with self._busy:
            await self._fetch()
        if self._number > 1 or live.record.multipart:
            self._send()
            await asyncio.wait(list(self._sending))
            return
        if self._buffer is None:
            raise StorageError("there are no bytes to store")
        data = bytes(memoryview(self._buffer)[: self._filled])
        if finishing:
            ensure_held(self._fence)
            store.whole.hold(live, data)
            self._taken = 0
        else:
            await put_whole(store, live, data, fence=self._fence)

    async def _count_replaced(self) -> None:
        """Count parts again that replaced those of a refused request."""
        record, live = self._live.record, self._live
        if not record.below:
            return
        below = max(record.below, len(live.progress.parts) + 1)
        if below == record.below:
            return
        is_over = below > record.void_to
        parts = live.progress.parts[record.below - 1 : min(below - 1, record.void_to)]
        changed = replace(
            record,
            below=0 if is_over else below,
            void_to=0 if is_over else record.void_to,
            replaced={**record.replaced, **{part.number: part.etag for part in parts}},
        )
        await self._store.save_record(live, changed, self._fence)


async def put_tail(store: Bucketed, live: Live, start: int, data: bytes | memoryview) -> ObjectHead:
    """Replace the tail, on condition that no other holder did. Raises LeaseLost, ObjectStoreError."""
    record = live.record
    key, progress = store.layout.tail(record.info.id), live.progress
    now = store.now()
    properties = tail_properties(record, start, now)
    try:
        known = progress.tail_etag
        etag = await store.objects.put(key, data, properties, if_match=known, if_absent=not known)
        head = ObjectHead(key, len(data), etag, now, properties)
    except (PreconditionFailed, ObjectNotFound):
        head = await _stored_before(store, record, properties, data)
    progress.tail_etag = head.etag
    return head


async def _stored_before(
    store: Bucketed, record: Record, properties: Properties, data: bytes | memoryview
) -> ObjectHead:
    """The tail, if it is the one that an attempt without a response stored. Raises LeaseLost."""
    lost = LeaseLost(f"another holder replaced the tail of {record.info.id}")
    try:
        head, stored = await store.objects.read(
            store.layout.tail(record.info.id), limit=record.plan.size(store.options.max_parts)
        )
    except ObjectNotFound:
        raise lost from None
    if stored != data or head.properties.metadata != properties.metadata:
        raise lost
    return replace(head, modified_at=tail_time(head))


async def put_whole(
    store: Bucketed,
    live: Live,
    data: bytes | bytearray,
    *,
    fence: Fence,
    finished_at: float | None = None,
) -> None:
    """Store an upload as one object, in one request. Raises LeaseLost, ObjectStoreError.

    finished_at: stored with it, so that the object tells of the finish too. An object of this upload that is there stays: a
    holder that lost the lock would otherwise take back the finish of another.
    """
    record, tail_etag = live.record, live.progress.tail_etag
    key = store.layout.data(record.info)
    properties = record.properties(store.options.metadata_keys, finished_at)
    done = Progress(done=True, size=len(data), finished_at=finished_at)
    live.may_be_finished = live.may_be_finished or finished_at is not None
    ensure_held(fence)
    try:
        await store.objects.put(key, data, properties, kind=ObjectKind.DATA, if_absent=True)
    except PreconditionFailed:
        done = await _put_over(store, record, data, properties, fence) or done
    live.progress = replace(done, changed_at=done.changed_at or store.now(), tail_etag=tail_etag)


async def _put_over(
    store: Bucketed, record: Record, data: bytes | bytearray, properties: Properties, fence: Fence
) -> Progress | None:
    """Replace the object that is in the way, and return None; if it is the upload already, return its progress.

    Its token and its size alone do not tell: another holder may have stored other bytes. Raises LeaseLost, ObjectStoreError.
    """
    key = store.layout.data(record.info)
    lost = LeaseLost(f"another holder stored the object of {record.info.id}")
    try:
        head = await store.objects.head(key)
        if record.is_at(head) and head.size == len(data):
            head, stored = await store.objects.read(key, limit=len(data))
            finished_at = record.finish_in(head.properties)
            if stored == data:
                return Progress(
                    done=True, size=head.size, changed_at=head.modified_at, finished_at=finished_at
                )
            if finished_at is not None:
                raise lost
        elif not record.may_replace(head):
            raise ForeignObject(f"{key} is an object that this server did not store")
        ensure_held(fence)
        await store.objects.put(key, data, properties, kind=ObjectKind.DATA, if_match=head.etag)
    except (PreconditionFailed, ObjectNotFound):
        raise lost from None
    return None
