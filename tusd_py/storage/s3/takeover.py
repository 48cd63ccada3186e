"""Uploads that tusd has left in the bucket: what they are, and how they become ours.

tusd's upload has the id `<object>+<multipart upload>`. Its record is `<object>.info`, the bytes behind its last part are
`<object>.part`, and it is complete once its multipart upload is gone. Its parts have any size, and it counts all of them; here
only those without a gap count. Nothing changes until the upload is to be changed: then our record is stored under the upload's
whole id, in one conditional request, and tusd's is removed. Not for: tusd that still runs on the bucket.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from tusd_py.locks.base import Fence, LeaseLost, ensure_held
from tusd_py.storage.base import MAX_ID_BYTES, UploadInfo, UploadUntrusted, is_valid_id
from tusd_py.storage.file import records
from tusd_py.storage.s3.bucket import S3Options
from tusd_py.storage.s3.object_store import (
    ObjectHead,
    ObjectNotFound,
    Part,
    PreconditionFailed,
)
from tusd_py.storage.s3.places import Places
from tusd_py.storage.s3.plan import PartPlan
from tusd_py.storage.s3.progress import Progress, newest, read_tail, tail_properties
from tusd_py.storage.s3.record import Record, serialize, tusds_id
from tusd_py.storage.s3.requests import ObjectStore

_MIB = 1024 * 1024
_TAIL_LIMIT = 5 * 1024**3


@dataclass(frozen=True, slots=True)
class Found:
    """An upload of tusd's.

    Attributes:
        record: Ours for it, not stored yet.
        progress: Its bytes that count.
        behind_gap: Parts that do not count, by number.
        abandoned: The id of tusd's multipart upload if none of its parts counts, so that it is not needed; else empty.
    """

    record: Record
    progress: Progress
    behind_gap: tuple[int, ...] = ()
    abandoned: str = ""


class Takeover:
    """Finds and takes over tusd's uploads in one bucket.

    counts_tails: whether tusd's `.part` counts. Where tusd was killed, a part before it may be missing, and nothing tells.
    """

    def __init__(
        self,
        objects: ObjectStore,
        places: Places,
        options: S3Options,
        *,
        counts_tails: bool = True,
    ) -> None:
        self._objects = objects
        self._places = places
        self._options = options
        self._layout = options.layout
        self._counts_tails = counts_tails

    async def owner(self, name: str) -> str | None:
        """Return the id of the upload of tusd's whose record has this name; None if it is a record of ours."""
        try:
            _, content = await self._objects.read(self._layout.record(name))
        except ObjectNotFound:
            return None
        return tusds_id(content)

    async def find(self, upload_id: str) -> Found | None:
        """Return tusd's upload with this id; None if there is none.

        Raises UploadUntrusted if it cannot be taken over without loss, RecordUnreadable, ObjectStoreError.
        """
        name, _, multipart = upload_id.rpartition("+")
        if not multipart or not is_valid_id(name):
            return None
        try:
            head, content = await self._objects.read(self._layout.record(name))
        except ObjectNotFound:
            return None
        if tusds_id(content) != upload_id:
            return None
        if not is_valid_id(upload_id):
            raise UploadUntrusted(f"{upload_id}: its id has more than {MAX_ID_BYTES} bytes")
        info = records.parse(content, upload_id=upload_id, root="", changed_at=head.modified_at)
        info = info._replace(location=name)
        self._check_place(info, content)
        key = self._layout.key(name)
        try:
            listed = await self._objects.list_parts(key, multipart)
        except ObjectNotFound:
            return await self._finished(info, key)
        return await self._unfinished(info, multipart, listed)

    def _check_place(self, info: UploadInfo, content: bytes) -> None:
        """Raise UploadUntrusted if the record says that the bytes are elsewhere. Records of old versions say nothing."""
        document = json.loads(content)
        written = document.get("Storage")
        ours = self._layout.storage(info.location or info.id, bucket=self._options.bucket)
        if isinstance(written, dict) and written.get("Key"):
            there = (written.get("Bucket", self._options.bucket), written["Key"])
            if there != (ours["Bucket"], ours["Key"]):
                raise UploadUntrusted(
                    f"{info.id}: its bytes are at s3://{there[0]}/{there[1]}, and --s3-bucket and --s3-object-prefix say "
                    f"s3://{ours['Bucket']}/{ours['Key']}"
                )

    async def _finished(self, info: UploadInfo, key: str) -> Found:
        """An upload whose multipart upload is gone: complete, if the object is there."""
        head = await self._objects.head_or_none(key)
        if head is None:
            raise UploadUntrusted(
                f"{info.id}: its multipart upload is gone, and there is no object {key}"
            )
        if info.is_final and not info.length:
            info = info._replace(length=head.size)
        if head.size != info.length:
            raise UploadUntrusted(
                f"{info.id}: its multipart upload is gone, and {key} has {head.size} bytes instead of {info.length}"
            )
        info = info._replace(finished_at=head.modified_at)
        record = Record(info, PartPlan(self._options.part_bytes), _token(info.id), before="")
        return Found(record, Progress(done=True, size=head.size, changed_at=head.modified_at))

    async def _unfinished(self, info: UploadInfo, multipart: str, listed: Sequence[Part]) -> Found:
        if info.is_final:
            raise UploadUntrusted(
                f"{info.id}: its parts were not joined to the end; join them again"
            )
        record = Record(info, PartPlan(self._options.part_bytes), _token(info.id), multipart)
        progress = Progress(changed_at=info.created_at)
        for number, part in enumerate(newest(listed, record), start=1):
            if part is None or part.number != number or not part.size:
                break
            progress.add(part)
        counted = len(progress.parts)
        behind = tuple(sorted({part.number for part in listed if part.number > counted}))
        if self._counts_tails and not behind:
            await self._add_tail(progress, info.location or "")
        if info.length is not None and progress.offset > info.length:
            raise UploadUntrusted(
                f"{info.id}: it has {progress.offset} bytes, but its length is {info.length}"
            )
        if not counted:
            plan = self._plan(info.length, progress, ())
            return Found(replace(record, plan=plan, multipart=""), progress, behind, multipart)
        given = [
            (size, len(list(group))) for size, group in groupby(p.size for p in progress.parts)
        ]
        record = replace(record, plan=self._plan(info.length, progress, given), before="")
        if behind:
            record = replace(record, below=counted + 1, void_to=behind[-1])
        return Found(await self._with_object_before(record), progress, behind)

    async def _add_tail(self, progress: Progress, name: str) -> None:
        tail = await self._objects.head_or_none(self._layout.tail(name))
        if tail is not None and tail.size:
            progress.tail = tail
            progress.changed_at = max(progress.changed_at, tail.modified_at)

    async def _with_object_before(self, record: Record) -> Record:
        """The record with the object that is at its key already, which is not what its completion will make."""
        head = await self._objects.head_or_none(self._layout.data(record.info))
        return record if head is None else replace(record, before=head.etag)

    def _plan(
        self, length: int | None, progress: Progress, given: Sequence[tuple[int, int]]
    ) -> PartPlan:
        """The plan that has tusd's parts first. Raises UploadUntrusted if the store would not take them."""
        options, counted = self._options, len(progress.parts)
        rest = None if length is None else length - progress.end
        if options.equal_parts and len(given) > 1 and rest:
            raise UploadUntrusted(
                "its parts are of different sizes, which this object store does not complete (--s3-equal-parts)"
            )
        plan = PartPlan.of(
            rest,
            part_bytes=options.part_bytes,
            max_parts=max(1, options.max_parts - counted),
            equal=options.equal_parts or bool(counted),
        )
        same = given[0][0] if len(given) == 1 else 0
        if same >= plan.part_bytes or (same and options.equal_parts):
            plan = replace(plan, part_bytes=same)
        tail = progress.tail.size if progress.tail is not None else 0
        if tail > plan.part_bytes:
            plan = replace(plan, part_bytes=-(-tail // _MIB) * _MIB)
        return replace(plan, given=tuple(given))

    # Taking over

    async def adopt(self, found: Found, fence: Fence) -> None:
        """Make the upload ours. Can be repeated after a crash anywhere.

        Raises LeaseLost if another process has taken it over, UploadExists, ObjectStoreError.
        """
        record, tail = found.record, found.progress.tail
        info = record.info
        name = info.location or info.id
        ensure_held(fence)
        await self._places.take(name, info.id)
        if tail is not None:
            await self._copy_tail(record, found.progress.end, tail)
        storage = self._layout.storage(name, bucket=self._options.bucket)
        content = serialize(record, storage=storage)
        ensure_held(fence)
        try:
            await self._objects.put_record(self._layout.record(info.id), content, if_absent=True)
        except PreconditionFailed:
            raise LeaseLost(f"another process has taken {info.id} over") from None
        if found.abandoned:
            await self._objects.abort(self._layout.data(info), found.abandoned)
        await self.forget(info.id)

    async def _copy_tail(self, record: Record, start: int, tail: ObjectHead) -> None:
        data = await read_tail(self._objects, tail, limit=_TAIL_LIMIT)
        key = self._layout.tail(record.info.id)
        properties = tail_properties(record, start, tail.modified_at)
        try:
            await self._objects.put(key, data, properties, if_absent=True)
        except PreconditionFailed:
            _, stored = await self._objects.read(key, limit=_TAIL_LIMIT)
            if stored != data:
                raise LeaseLost(f"another process has taken {record.info.id} over") from None

    async def forget(self, upload_id: str) -> None:
        """Remove tusd's record and tail of an upload that has a record of ours, or is removed."""
        name, _, multipart = upload_id.rpartition("+")
        if not multipart or not is_valid_id(name):
            return

        async def look_at_record() -> str:
            try:
                head, content = await self._objects.read(self._layout.record(name))
            except ObjectNotFound:
                return ""
            return head.etag if tusds_id(content) == upload_id else ""

        async def look_at_tail() -> str:
            head = await self._objects.head_or_none(self._layout.tail(name))
            # As long as that record is there, no upload of ours has the name for its id.
            return head.etag if head is not None and await look_at_record() else ""

        await self._objects.delete_if(self._layout.tail(name), look_at_tail)
        await self._objects.delete_if(self._layout.record(name), look_at_record)


def _token(upload_id: str) -> str:
    """The same for each process that takes the upload over, so that a repeat stores the same record."""
    return hashlib.sha256(f"tusd\0{upload_id}".encode()).hexdigest()[:32]
