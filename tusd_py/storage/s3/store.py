"""The store in a bucket: records, bytes and events of uploads as objects, for any number of servers.

The bucket is the truth about bytes. A process that adds bytes to an upload writes its name into the record first, so that it
needs no list of parts until another one does the same. See `plan.py` for where bytes lie, `progress.py` for which of them
count, `completion.py` for the end. Not for: locks, which come from Redis or are in memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tusd_py import logs
from tusd_py.locks.base import UNFENCED, Fence, LeaseLost, Locks, ensure_held
from tusd_py.protocol.tus import Content
from tusd_py.storage.base import (
    MAX_ID_BYTES,
    BytesMissing,
    DiskSpace,
    Guard,
    PlaceTaken,
    RemovalEvent,
    StorageError,
    UnpublishedRemoval,
    Upload,
    UploadExists,
    UploadGone,
    UploadInfo,
    UploadNotFound,
    Writer,
    is_random_id,
    is_valid_id,
)
from tusd_py.storage.finished_names import FinishedNames
from tusd_py.storage.s3.bucket import S3Options
from tusd_py.storage.s3.completion import Completions, complete_parts
from tusd_py.storage.s3.freeing import pending_of, stored_record
from tusd_py.storage.s3.joining import S3Joiner, assemble, gather_bytes, pieces
from tusd_py.storage.s3.layout import RECORD
from tusd_py.storage.s3.live import Live
from tusd_py.storage.s3.object_store import (
    MAX_PART_BYTES,
    ObjectHead,
    ObjectNotFound,
    ObjectStoreError,
    PreconditionFailed,
    StoreUnavailable,
    for_each,
)
from tusd_py.storage.s3.outbox import S3Outbox
from tusd_py.storage.s3.places import Places
from tusd_py.storage.s3.plan import PartPlan
from tusd_py.storage.s3.progress import Progress, finish_of, part_size, read_progress
from tusd_py.storage.s3.reader import MOST_CLIENTS, S3Reader
from tusd_py.storage.s3.record import Record, TusdsRecord, parse, serialize
from tusd_py.storage.s3.removal import S3Removal
from tusd_py.storage.s3.requests import ObjectStore
from tusd_py.storage.s3.spool import Spool
from tusd_py.storage.s3.sweep_marks import S3SweepMarks
from tusd_py.storage.s3.tails import Tails
from tusd_py.storage.s3.takeover import Takeover
from tusd_py.storage.s3.translation import translated
from tusd_py.storage.s3.verified import VerifiedS3Writer
from tusd_py.storage.s3.whole import WholeUploads
from tusd_py.storage.s3.writer import S3Writer, put_whole
from tusd_py.storage.skipped import Skip, skip_entry

logger = logging.getLogger(__name__)

_TOKEN_BYTES = 16
_REVISION_BYTES = 8
_KEPT_LIVE = 10_000
"""Uploads of which a process remembers the record and the parts."""
_AT_ONCE = 32
"""Requests that one listing makes at a time."""


@dataclass(eq=False, slots=True)
class _Look:
    """A look at an upload in the bucket. is_outdated: the upload was finished, removed or forgotten since the look began."""

    is_outdated: bool = False


class S3Store:
    """See `Store`."""

    verifies_chunks = True
    reads_unfinished = False
    has_one_clock = False
    volume = None
    """A bucket has its own name, and nothing is in its place where it cannot be reached."""

    def __init__(self, objects: ObjectStore, options: S3Options) -> None:
        self.objects = objects
        self.options = options
        self.layout = options.layout
        self.spool = Spool(options.spool_bytes)
        self.whole = WholeUploads(self.spool)
        self._clients = asyncio.Semaphore(MOST_CLIENTS)
        self.tails = Tails(self.spool)
        self._process = os.urandom(_TOKEN_BYTES).hex()
        self._live: OrderedDict[str, Live] = OrderedDict()
        self._looks: dict[str, set[_Look]] = {}
        """Looks at the bucket that are under way, by upload."""
        self._beginning: dict[str, asyncio.Lock] = {}
        self._is_alone = False
        """Whether no other process changes uploads, so that what this one remembers needs no look at the record."""
        self.outbox = S3Outbox(objects, self.layout)
        self.sweep_marks = S3SweepMarks(objects, self.layout)
        self._places = Places(objects, self.layout, options.bucket, options.allowed_locations)
        self._takeover = self.takeover()
        self._names = (
            FinishedNames(options.finished_names, longest=MAX_ID_BYTES)
            if options.finished_names
            else None
        )
        self._removal = S3Removal(
            objects, self.layout, self._places, keeps_finished=options.keeps_finished
        )
        self.joiner = S3Joiner(objects, self.layout, self._fill)
        self._completions = Completions(self)

    def now(self) -> float:
        return time.time()

    @property
    def most_bytes(self) -> int:
        return min(self.options.most_object_bytes, self.options.max_parts * MAX_PART_BYTES)

    # Opening and closing

    def open(self, guard: Guard = "exclusive", *, wait: float = 0.0) -> None:
        """See `Store`. A bucket cannot be claimed: who shares it shares the locks too. Who does not is told in `guard`."""
        self._is_alone = guard == "exclusive"
        asyncio.run(self._try_out())

    async def _try_out(self) -> None:
        try:
            await self.check()
            for key in self._places.probes:
                with translated(f"trying out {key}"):
                    await self.objects.put(key, b"")
                    await self.objects.delete(key)
        finally:
            await self.objects.close()

    async def stop(self) -> None:
        await self._completions.stop()
        self.tails.close()
        await self.objects.close()

    async def check(self) -> None:
        key = self.layout.state("probe", self._process)
        with translated(f"trying out the bucket {self.options.bucket}"):
            await self.objects.put(key, b"probe")
            await self.objects.delete(key)

    async def free_space(self) -> int | None:
        return None

    async def disk_space(self) -> DiskSpace | None:
        return None

    # Records

    def locate(self, upload_id: str, *, bucket: str, prefix: str, key: str) -> str:
        return self._places.location(upload_id, bucket=bucket, prefix=prefix, key=key)

    async def _take_place(self, record: Record) -> None:
        """Take the place of an upload whose key a hook chose. Raises UploadExists."""
        info = record.info
        if info.location is not None:
            await self._places.take(info.location, info.id)
            taken = self.layout.record(info.location), self.layout.data(info)
            if any([await self.objects.head_or_none(key) for key in taken]):
                await self._places.leave(info.location, info.id)
                raise PlaceTaken(f"{info.location} is taken")
        elif not record.has_own_key:
            await self._check_key(record)

    async def _check_key(self, record: Record) -> None:
        """Raise UploadExists if there is a foreign object where an upload with an id that a hook chose belongs."""
        head = await self.objects.head_or_none(self.layout.data(record.info))
        if head is not None and not record.may_replace(head):
            raise UploadExists(f"{head.key} is no upload's object")

    async def _confirm_place(self, info: UploadInfo, etag: str) -> None:
        """Take a creation back whose place another one has got meanwhile. Raises PlaceTaken.

        Each creation stores its own claim before it looks at those of others, so that of two at most one goes on.
        etag: of the record.
        """
        if info.location is None and is_random_id(info.id):
            return
        place = info.location or info.id
        if await self._places.holder(place) != (info.location and info.id):
            await self.objects.delete_seen(self.layout.record(info.id), etag)
            raise PlaceTaken(f"the place of {info.id} is taken")

    async def create(self, info: UploadInfo, *, fence: Fence = UNFENCED) -> Upload:
        if self._names is None or info.location is not None or info.is_partial:
            return await self._create_at(info, fence)
        # An object cannot be renamed: it gets its name before it exists.
        for name in self._names.of(info):
            named = info._replace(location=name)
            try:
                return await self._create_at(
                    named._replace(finished_path=self.path_of(named)), fence
                )
            except PlaceTaken:
                continue
        raise PlaceTaken(f"all keys that --finished-dir gives {info.id} are taken")

    def path_of(self, info: UploadInfo) -> str:
        storage = self.layout.storage(info.location or info.id, bucket=self.options.bucket)
        return f"s3://{storage['Bucket']}/{storage['Key']}"

    async def _create_at(self, info: UploadInfo, fence: Fence) -> Upload:
        record = Record(
            info=info,
            plan=self._plan(info.length),
            token=os.urandom(_TOKEN_BYTES).hex(),
            holder=self._process,
        )
        self.layout.check(info)
        with translated(f"creating {info.id}"):
            await self._take_place(record)
            ensure_held(fence)
            try:
                etag = await self.objects.put_record(
                    self.layout.record(info.id), self._serialize(record), if_absent=True
                )
            except PreconditionFailed:
                await self._give_place_back(info)
                raise UploadExists(f"{info.id} exists already") from None
            await self._confirm_place(info, etag)
        progress = Progress(changed_at=info.created_at)
        self._remember(Live(replace(record, etag=etag), progress, may_have_twin=False))
        most = self._most_bytes_of(info, record.plan)
        return Upload(info, 0, info.created_at, joined=not info.is_final, most_bytes=most)

    async def _give_place_back(self, info: UploadInfo) -> None:
        """Free the place that was taken for a creation whose id exists, unless the upload that exists has it."""
        if info.location is None:
            return
        try:
            other = await stored_record(self.objects, self.layout, info.id)
            # One that has gone meanwhile may have had the place, and not be removed whole: a sweep frees it then.
            has_place = other is None or other.info.location == info.location
        except StorageError:
            has_place = False
        if not has_place:
            await self._places.leave(info.location, info.id)

    def _serialize(self, record: Record) -> bytes:
        location = record.info.location or record.info.id
        storage = self.layout.storage(location, bucket=self.options.bucket)
        return serialize(record, storage=storage)

    def _remember(self, live: Live) -> None:
        self._live[live.record.info.id] = live
        self._live.move_to_end(live.record.info.id)
        while len(self._live) > _KEPT_LIVE:
            self._drop(next(iter(self._live)))

    def _drop(self, upload_id: str) -> None:
        """Forget an upload. Looks that are under way may find what was true before, and are not remembered."""
        self._live.pop(upload_id, None)
        for look in self._looks.get(upload_id, ()):
            look.is_outdated = True

    async def _read_record(self, upload_id: str) -> Record:
        """Raises UploadNotFound, UploadGone, StorageError, ObjectStoreError."""
        if not is_valid_id(upload_id):
            raise UploadNotFound("this can name no upload")
        try:
            head, content = await self.objects.read(self.layout.record(upload_id))
        except ObjectNotFound:
            self._drop(upload_id)
            gone = await self._removal.gone(upload_id)
            if gone is not None:
                raise gone from None
            raise UploadNotFound(f"there is no upload {upload_id}") from None
        return parse(content, upload_id=upload_id, changed_at=head.modified_at, etag=head.etag)

    async def save_record(self, live: Live, record: Record, fence: Fence) -> None:
        """Replace a record on condition that it is the one that `live` knows. Raises LeaseLost, UploadNotFound."""
        record = replace(record, revision=os.urandom(_REVISION_BYTES).hex())
        upload_id, content = record.info.id, self._serialize(record)
        with live.doubtful_after_failure(), translated(f"recording {upload_id}"):
            ensure_held(fence)
            try:
                etag = await self.objects.put_record(
                    self.layout.record(upload_id), content, if_match=live.record.etag
                )
            except PreconditionFailed:
                self._drop(upload_id)
                raise LeaseLost(f"another holder replaced the record of {upload_id}") from None
            except ObjectNotFound:
                self._drop(upload_id)
                raise UploadNotFound(f"there is no upload {upload_id}") from None
        live.record = replace(record, etag=etag)

    async def _known(self, upload_id: str) -> Live:
        """What this process knows of an upload that it loaded before; asks the bucket if it forgot."""
        live = self.whole.live(upload_id) or self._live.get(upload_id)
        return live if live is not None else await self._look_up(upload_id)

    async def _look_up(self, upload_id: str) -> Live:
        """Return what is known of an upload; asks the bucket for what this process does not know for certain."""
        look = _Look()
        looks = self._looks.setdefault(upload_id, set())
        looks.add(look)
        try:
            return await self._ask(upload_id, look)
        finally:
            looks.discard(look)
            if not looks:
                self._looks.pop(upload_id, None)

    async def _ask(self, upload_id: str, look: _Look) -> Live:
        """Read the record, and what the bucket holds unless this process is the one that adds bytes."""
        known = self._live.get(upload_id)
        before = "" if known is None else known.record.etag
        live = None if known is None or known.is_doubtful else known
        if live is not None and self._is_alone and live.record.holder == self._process:
            return live
        try:
            record = await self._read_record(upload_id)
        except UploadNotFound:
            found = await self._takeover.find(upload_id)
            if found is None:
                raise
            return Live(found.record, found.progress, may_have_twin=False)
        if (
            live is not None
            and live.record.token == record.token
            and live.record.holder == record.holder == self._process
        ):
            # Otherwise a request of this process replaced the record meanwhile.
            if live.record.etag == before:
                live.record = record
            return live
        info = record.info
        if info.finished_at is not None:
            self._drop(upload_id)
            done = Progress(done=True, size=info.length or 0, changed_at=info.finished_at)
            return Live(record, done, may_have_twin=False)
        progress = await read_progress(self.objects, self.layout, record)
        current = self._live.get(upload_id)
        if (
            current is not None
            and (current is not known or current.record.etag != before)
            and current.record.token == record.token
            and current.record.holder == self._process
        ):
            # Another request of this process took the upload over or looked at it meanwhile, and may have stored more since.
            return await self._ask(upload_id, look)
        live = Live(record, progress, may_have_twin=True)
        live.may_be_finished = known is not None and known.may_be_finished
        if progress.finished_at is not None:
            self._drop(upload_id)
        elif not look.is_outdated:
            self._remember(live)
        return live

    async def load(self, upload_id: str) -> Upload:
        with translated(f"loading {upload_id}"):
            live = await self._look_up(upload_id)
        info, progress = live.info, live.progress
        if info.finished_at is not None:
            return Upload(info, info.length or 0, info.finished_at)
        joined = not info.is_final or progress.done
        if info.is_final and joined and info.length is None:
            info = info._replace(length=progress.size)
        changed_at = max(progress.changed_at, info.created_at)
        most = self._most_bytes_of(info, live.record.plan)
        return Upload(info, progress.offset, changed_at, joined, most_bytes=most)

    def _most_bytes_of(self, info: UploadInfo, plan: PartPlan) -> int | None:
        """Most bytes of an upload whose parts were planned without its length; None for others."""
        if info.length is not None or info.is_final:
            return None
        return min(self.most_bytes, plan.most_bytes(self.options.max_parts))

    async def load_each(self, upload_ids: Sequence[str]) -> list[Upload | StorageError]:
        return await for_each(upload_ids, self._load_or_error, at_once=_AT_ONCE)

    async def _load_or_error(self, upload_id: str) -> Upload | StorageError:
        try:
            return await self.load(upload_id)
        except TusdsRecord as problem:
            # Only here, for sweeps: no client may find an upload by the name of its object alone.
            return await self._load_or_error(problem.upload_id)
        except StorageError as problem:
            return problem
        except Exception as problem:  # noqa: BLE001 - one upload must not keep the others from being swept
            return StorageError(f"{upload_id}: {problem!r}")

    async def recover(self, upload: Upload, *, fence: Fence) -> Upload:
        if not upload.info.foreign:
            return upload
        with translated(f"taking {upload.id} over"):
            await self._adopt(upload.id, fence)
        return await self.load(upload.id)

    def takeover(self, *, counts_tails: bool = True) -> Takeover:
        """What finds and takes over the uploads that tusd has left in the bucket. See `Takeover` for the argument."""
        return Takeover(self.objects, self._places, self.options, counts_tails=counts_tails)

    async def is_recorded(self, upload_id: str) -> bool:
        """Whether there is a record of ours, or a tombstone. Raises StorageError."""
        with translated(f"looking for {upload_id}"):
            record = await self.objects.head_or_none(self.layout.record(upload_id))
            return record is not None or await self._removal.gone(upload_id) is not None

    async def _adopt(self, upload_id: str, fence: Fence) -> None:
        """Make an upload that tusd began ours, if it is not yet."""
        found = await self._takeover.find(upload_id)
        if found is not None:
            await self._takeover.adopt(found, fence)
            logs.event(
                logger,
                logging.INFO,
                "upload of tusd taken over",
                upload=upload_id,
                offset=found.progress.offset,
                parts=len(found.progress.parts),
                behind_gap=len(found.behind_gap) or None,
            )

    async def _ours(self, upload_id: str, fence: Fence) -> Live:
        """What is known of an upload that is about to be changed, so that it has a record of ours."""
        live = await self._known(upload_id)
        if live.record.etag:
            return live
        await self._adopt(upload_id, fence)
        return await self._look_up(upload_id)

    async def save(self, info: UploadInfo, *, fence: Fence) -> None:
        with translated(f"recording {info.id}"):
            try:
                live = await self._ours(info.id, fence)
            except UploadGone as problem:
                raise UploadNotFound(str(problem)) from None
            record = replace(live.record, info=info)
            if info.is_final and info.length is not None and live.record.info.length is None:
                # Before it has parts: a process that goes on with the join makes the same ones.
                record = replace(record, plan=self._plan(info.length))
            undoes = info.finished_at is None and (live.may_be_finished or live.info.finished_at)
            if undoes:
                record = replace(record, undone=record.undone + 1)
            await self.save_record(live, record, fence)
            if undoes:
                live.may_be_finished, live.progress.finished_at = False, None

    def _plan(self, length: int | None) -> PartPlan:
        options = self.options
        return PartPlan.of(
            length,
            part_bytes=options.part_bytes,
            max_parts=options.max_parts,
            equal=options.equal_parts,
        )

    # Bytes

    async def open_writer(self, upload: Upload, content: Content, *, fence: Fence) -> Writer:
        with translated(f"opening {upload.id}"):
            live = await self._ours(upload.id, fence)
            is_held = live.record.holder == self._process and not live.progress.is_lost
            if not is_held and not live.progress.done:
                record = replace(live.record, holder=self._process)
                if live.progress.is_lost:
                    record = replace(record, multipart="", below=0, void_to=0, replaced={})
                await self.save_record(live, record, fence)
                live.progress.is_lost = False
                # A look at the upload may have ended meanwhile, and must not be taken for what this writer adds to.
                self.remember(live, fence)
        if live.progress.offset != upload.offset:
            raise LeaseLost(f"{upload.id} has other bytes than when it was loaded")
        writer = S3Writer(
            self,
            upload,
            live,
            fence,
            may_discard=content.length is None,
            # What is verified is all there.
            may_be_slow=not content.verified,
        )
        if not content.verified:
            return writer
        return VerifiedS3Writer(
            writer, self.spool, self.options.part_bytes, self.options.spool_directory
        )

    async def multipart(self, live: Live, fence: Fence) -> str:
        """Return the id of the multipart upload, begun if there is none. Raises LeaseLost, ObjectStoreError."""
        lock = self._beginning.setdefault(live.record.info.id, asyncio.Lock())
        try:
            async with lock:
                if not live.record.multipart:
                    await self._begin_multipart(live, fence)
                return live.record.multipart
        finally:
            if not lock.locked():
                self._beginning.pop(live.record.info.id, None)

    async def _begin_multipart(self, live: Live, fence: Fence) -> None:
        key = self.layout.data(live.record.info)
        if live.may_have_twin:
            await self._abort_unrecorded(live, fence)
        ensure_held(fence)
        begun = await self.objects.create_multipart(
            key, live.record.properties(self.options.metadata_keys)
        )
        try:
            if begun.may_have_twin:
                await self._abort_unrecorded(live, fence, but=begun.upload_id)
            record = replace(live.record, multipart=begun.upload_id)
            await self.save_record(live, record, fence)
        except (LeaseLost, UploadNotFound):
            # Nobody else knows of it.
            await self.objects.abort(key, begun.upload_id)
            raise
        live.may_have_twin = False

    async def _abort_unrecorded(self, live: Live, fence: Fence, *, but: str = "") -> None:
        """Abort the multipart uploads of an upload that has none in its record. but: the one to keep.

        Nothing is aborted that another holder uses, also where the lock is another one's by now: the record is replaced between
        the list and the first abort. That fails if another holder has recorded what is listed, and one that has only begun it
        cannot record it any more. Goes on where the store does not permit it, as what stays is in nobody's way. Raises
        LeaseLost, StorageError, StoreUnavailable.
        """
        key = self.layout.data(live.record.info)
        try:
            pending = await pending_of(self.objects, live.record, key)
            others = [upload_id for upload_id in pending if upload_id != but]
            if not others or not await self._has_place(live.record.info):
                return
            await self.save_record(live, live.record, fence)
            for other in others:
                await self.objects.abort(key, other)
        except StoreUnavailable:
            raise
        except ObjectStoreError as problem:
            logger.warning("parts of %s stay in the bucket: %s", live.record.info.id, problem)

    async def _has_place(self, info: UploadInfo) -> bool:
        """Whether an upload has its key to itself: at a place that was chosen for it, as long as that is marked as its own."""
        return info.location is None or await self._places.holder(info.location) == info.id

    def remember(self, live: Live, fence: Fence) -> None:
        """Let later requests rely on what is known of an upload. Raises LeaseLost: others may have stored more."""
        try:
            with fence():
                self._remember(live)
        except LeaseLost:
            self.forget(live)
            raise

    def forget(self, live: Live) -> None:
        """Ask the bucket next time: what is known of an upload is wrong, or may be."""
        self._drop(live.record.info.id)

    async def name(self, upload: Upload, *, sync: bool, fence: Fence) -> UploadInfo:
        """See `Store`. The object has its name from the start, and is there once it is complete."""
        return upload.info

    async def take_name(self, info: UploadInfo, *, fence: Fence) -> None:
        """See `Store`. There is nothing to undo."""

    async def settle(self, upload_id: str, *, fence: Fence) -> None:
        live = self.whole.live(upload_id)
        if live is None:
            return
        try:
            await self._completions.complete(live, fence)
        finally:
            self.whole.release(upload_id)

    async def sync(self, upload: Upload, *, fence: Fence) -> None:
        """See `Store`. What the bucket acknowledged is durable; an upload with all its bytes becomes an object."""
        if upload.fills_length and not upload.finished:
            with translated(f"completing {upload.id}"):
                await self._completions.complete(await self._ours(upload.id, fence), fence)

    async def finish(self, info: UploadInfo, *, sync: bool, fence: Fence) -> None:
        with translated(f"finishing {info.id}"):
            live = await self._ours(info.id, fence)
            has_grown = (
                live.may_have_twin and not live.record.multipart and self._may_have_grown(live)
            )
            # The object can tell of the finish, but not of anything else that the record lacks, nor that nothing is beside it.
            suffices = (
                live.record.info == info._replace(finished_at=None)
                and not live.progress.tail_etag
                and not has_grown
                and live.record.object_tells_finish
            )
            if live.record.info.length != info.length:
                live.record = replace(live.record, info=info._replace(finished_at=None))
            await self._completions.complete(
                live, fence, finished_at=info.finished_at if suffices else None
            )
            tail = live.progress.tail_etag
            if live.progress.finished_at != info.finished_at:
                if has_grown:
                    await self._abort_unrecorded(live, fence)
                await self.save_record(live, replace(live.record, info=info), fence)
        self.whole.release(info.id)
        self.tails.drop(info.id)
        self._drop(info.id)
        if tail or live.record.multipart:
            try:
                await self._removal.remove_tail(live.record, tail)
            except ObjectStoreError as problem:
                logger.warning("the tail of %s stays until it is removed: %s", info.id, problem)

    def _may_have_grown(self, live: Live) -> bool:
        """Whether an earlier holder may have had more than a part of an upload that now is a single one."""
        record = live.record
        if record.info.is_final or record.plan.grows:
            return True
        # Then the parts of an unknown length do not grow, and do not tell that it was unknown.
        return self.options.equal_parts

    async def open_reader(self, upload: Upload) -> S3Reader:
        with translated(f"opening {upload.id}"):
            key = self.layout.data(upload.info)
            head = await self.objects.head_or_none(key)
            if head is None:
                await self._read_record(upload.id)
                raise BytesMissing(f"there is no object {key}", upload.info)
            if upload.info.location is not None:
                known = await self._look_up(upload.id)
                if not known.record.is_at(head):
                    raise BytesMissing(f"the object {key} is another upload's", upload.info)
            if head.size != upload.offset:
                raise BytesMissing(
                    f"{key} has {head.size} bytes, and its record says {upload.offset}", upload.info
                )
            return S3Reader(self.objects, head, self._clients)

    # Joins

    async def _fill(self, final: UploadInfo, sources: Sequence[ObjectHead], fence: Fence) -> None:
        """See `Fill`."""
        live = await self._known(final.id)
        length = sum(source.size for source in sources)
        plan = live.record.plan
        if length <= plan.size(1):
            body = await gather_bytes(self.objects, list(pieces(sources, 0, length)))
            await put_whole(self, live, body, fence=fence)
            return
        if multipart := live.record.multipart:
            # From an attempt that did not get to its end. First the record: a join that goes on elsewhere has changed it.
            await self.save_record(live, replace(live.record, multipart=""), fence)
            await self.objects.abort(self.layout.data(final), multipart)
        live.may_have_twin = True
        multipart = await self.multipart(live, fence)
        numbers = range(1, plan.number(length - 1) + 1)
        ranges = [(plan.start(n), plan.start(n) + part_size(live.record, n)) for n in numbers]
        parts = await assemble(self.objects, self.layout.data(final), multipart, ranges, sources)
        ensure_held(fence)
        await complete_parts(self, live, multipart, parts)

    # Removal

    async def remove(
        self,
        upload_id: str,
        *,
        fence: Fence,
        event_id: str = "",
        keep_tombstone: bool = True,
        unpublished: RemovalEvent | None = None,
    ) -> None:
        with translated(f"removing {upload_id}"):
            try:
                record = await self._record_to_remove(upload_id, fence)
            except (UploadNotFound, UploadGone):
                return
            self.whole.release(upload_id)
            self.tails.drop(upload_id)
            finished_at = await finish_of(self.objects, self.layout, record)
            record = replace(record, info=record.info._replace(finished_at=finished_at))
            await self._removal.remove(
                record,
                fence,
                event_id=event_id,
                keep_tombstone=keep_tombstone,
                unpublished=unpublished,
                now=self.now(),
            )
            # What a crash left when it was taken over.
            await self._takeover.forget(upload_id)
            self._drop(upload_id)

    async def _record_to_remove(self, upload_id: str, fence: Fence) -> Record:
        try:
            return await self._read_record(upload_id)
        except UploadNotFound:
            await self._adopt(upload_id, fence)
            return await self._read_record(upload_id)

    async def remove_each(
        self,
        uploads: Sequence[Upload],
        *,
        fences: Mapping[str, Fence],
        event_ids: Mapping[str, str] | None = None,
        unpublished: Mapping[str, RemovalEvent] | None = None,
    ) -> list[bool | StorageError]:
        async def attempt(upload: Upload) -> bool | StorageError:
            try:
                await self.remove(
                    upload.id,
                    fence=fences[upload.id],
                    event_id=(event_ids or {}).get(upload.id, ""),
                    unpublished=(unpublished or {}).get(upload.id),
                )
            except LeaseLost:
                return False
            except StorageError as problem:
                return problem
            return True

        return await for_each(uploads, attempt, at_once=_AT_ONCE)

    async def unpublished_removals(self) -> list[UnpublishedRemoval]:
        with translated("reading unpublished removals"):
            return await self._removal.unpublished()

    async def finish_removal(self, removal: UnpublishedRemoval, *, fence: Fence) -> bool:
        upload_id = removal.upload.id
        with translated(f"removing {upload_id}"):
            await self._removal.resume(upload_id, fence)
            return await self._removal.is_unpublished(upload_id, removal.event.event_id)

    async def forget_removal(self, removal: UnpublishedRemoval, *, fence: Fence) -> None:
        with translated(f"removing {removal.upload.id}"):
            ensure_held(fence)
            await self._removal.forget(removal.upload.id, removal.event.event_id)

    # Sweeps

    async def ids(self, skip: Skip = skip_entry) -> AsyncIterator[str]:
        with translated(f"listing {self.options.bucket}"):
            async for listed in self.objects.each(self.layout.info_prefix):
                upload_id = self.layout.id_of(listed.key, RECORD)
                if upload_id is not None:
                    yield upload_id

    async def discard_fragment(self, upload_id: str, *, fence: Fence) -> bool:
        """See `Store`. A creation is one request: it happened or it did not."""
        return False

    async def missing_since(self, upload_id: str, *, marks: bool = True) -> float:
        key = self.layout.state("missing", upload_id)
        with translated(f"marking {upload_id}"):
            marked = await self.objects.head_or_none(key)
            if marked is not None:
                return marked.modified_at
            if marks:
                await self.objects.put(key, b"")
            return self.now()

    async def tidy(self, *, tombstone_ttl: float, locks: Locks | None = None) -> int:
        with translated("tidying up"):
            return await self._removal.tidy(self.now(), tombstone_ttl=tombstone_ttl, locks=locks)
