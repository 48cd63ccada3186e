"""The contract of a store: what every place for bytes must do, and what more it can do.

A store knows uploads, not requests: no header, no lock, no rule of a protocol. It is the truth about bytes: the offset that
it reports is what it really holds, whatever happened before. Its callers hold the upload's lock while they write, join, cut or
remove; reading needs none. A lock can be lost at any instant, so every change of an existing upload is made within the `fence`
of the lock: whichever thread makes it, and however long it waited before, it is refused with LeaseLost once the upload belongs
to another holder. What a store can do beyond the core is told by the small protocols at the end, and the extensions that the
server advertises are derived from them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

from tusd_py.locks.base import UNFENCED, Fence
from tusd_py.protocol.checksum import Checksum
from tusd_py.storage.skipped import Skip, skip_entry
from tusd_py.storage.sweep_marks import SweepMarks

MAX_ID_BYTES = 200
TIME_DIGITS = 6
"""Decimals of a second to which it is recorded when an upload was finished."""
_ID_SEGMENT = re.compile(r"[^./\\%:\x00-\x20\x7f][^/\\%:\x00-\x1f\x7f]*")
_is_ordinary_id = re.compile(r"[0-9a-f]{32}").fullmatch
_RESERVED_ENDINGS = (".info", ".part", ".lock")


class StorageError(Exception):
    """The store failed; the text is for the log, never for a client."""


class UploadNotFound(StorageError):
    """No upload has this id."""


class UploadUntrusted(UploadNotFound):
    """Another server's record and its bytes contradict each other; both are left alone. The text says how."""


class UploadGone(StorageError):
    """The upload was removed, and is still remembered."""


class UploadExists(StorageError):
    """An upload with this id exists already."""


class StorageFull(StorageError):
    """There is no room left. What was written before counts."""


class BytesNotKept(StorageError):
    """The disk could not keep bytes that it had taken. What may be lost does not count any more."""


def is_valid_id(upload_id: str) -> bool:
    """Whether `upload_id` may name an upload: at most 200 bytes of UTF-8, relative, its segments (between slashes) not empty,
    not beginning with a dot, without control characters, `\\`, `%` or `:`, and without an ending that the layout uses."""
    if _is_ordinary_id(upload_id) is not None:
        return True
    try:
        size = len(upload_id.encode("utf-8"))
    except UnicodeEncodeError:
        return False
    return (
        0 < size <= MAX_ID_BYTES
        and not upload_id.endswith(_RESERVED_ENDINGS)
        and all(_ID_SEGMENT.fullmatch(segment) for segment in upload_id.split("/"))
    )


@dataclass(frozen=True, slots=True)
class Counted:
    """What another server's record says of the bytes, where that and not the file is the truth about them.

    offset: how many count. last_request: how many of them came with the last request, 0 if that is not known.
    """

    offset: int
    last_request: int = 0


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """What is recorded about an upload beside its bytes.

    length: bytes, None while deferred (or, for a final, until it can be computed). metadata_header: `Upload-Metadata` as
    the client sent it. concat_header: `Upload-Concat` likewise. parts: ids, of a final. created_at, finished_at: seconds
    since the epoch; finished_at stays None until the bytes are durable and the pre-finish hooks agreed.
    expire_after: seconds without a byte, 0 for never, None for what the server does with all. retain: seconds for which it is
    kept once it is finished, 0 for ever, None likewise. owner: who it belongs to; empty where nobody is authenticated.
    max_size: the most bytes that its owner's token allowed; None for no such limit. location: where the bytes lie, relative to
    the store, when it is not the id. foreign: recorded by another server, which knows no `finished_at`. counted: what it
    counted, if that is the truth about the bytes.
    """

    id: str
    length: int | None
    metadata: dict[str, bytes] = field(default_factory=dict)
    metadata_header: str = ""
    concat_header: str = ""
    is_partial: bool = False
    is_final: bool = False
    parts: tuple[str, ...] = ()
    created_at: float = 0.0
    finished_at: float | None = None
    expire_after: float | None = None
    retain: float | None = None
    owner: str = ""
    max_size: int | None = None
    location: str | None = None
    foreign: bool = False
    counted: Counted | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload as it stands: what is recorded, and the truth about its bytes.

    offset: bytes held and counted. changed_at: when the last of them came, seconds since the epoch. joined: False only for a
    final whose bytes were not put together yet. is_cut: there are bytes that do not count, of a chunk that was not verified;
    `Store.recover` takes them away. expires_at: when it is to be removed, in seconds since the epoch, where others decide that
    and not its age: a part lives as long as the finals that list it; None as a rule.
    """

    info: UploadInfo
    offset: int
    changed_at: float
    joined: bool = True
    is_cut: bool = False
    expires_at: float | None = None

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def length(self) -> int | None:
        return self.info.length

    @property
    def complete(self) -> bool:
        """Whether all bytes are there. It is finished only when `info.finished_at` is set as well."""
        return self.joined and self.info.length is not None and self.offset == self.info.length

    @property
    def finished(self) -> bool:
        return self.info.finished_at is not None

    @property
    def remaining(self) -> int | None:
        """Bytes that are still to come; None while the length is unknown."""
        return None if self.info.length is None else self.info.length - self.offset

    def with_info(self, **changes: object) -> Upload:
        """The same bytes with another record."""
        info = replace(self.info, **changes)  # type: ignore[arg-type]
        return Upload(info, self.offset, self.changed_at, self.joined, self.is_cut)


class UploadDamaged(StorageError):
    """The bytes of an upload are not what its record tells, for good; the text says how. upload: as they are."""

    def __init__(self, message: str, upload: Upload) -> None:
        super().__init__(message)
        self.upload = upload


class BytesMissing(StorageError):
    """There is a record, but not its bytes: a volume may be away, so they may come back. info: what is recorded."""

    def __init__(self, message: str, info: UploadInfo) -> None:
        super().__init__(message)
        self.info = info

    @property
    def upload(self) -> Upload:
        """The upload as far as it is known."""
        return Upload(self.info, 0, self.info.created_at)


@dataclass(frozen=True, slots=True)
class RemovalEvent:
    """The event of a removal that could not be recorded before it. offset: bytes that the upload has."""

    event_id: str
    offset: int


@dataclass(frozen=True, slots=True)
class UnpublishedRemoval:
    """An upload that was removed and whose event is not recorded yet. remembered: see `RemovesUploads.remove`."""

    upload: Upload
    event: RemovalEvent
    keep_tombstone: bool


class Writer(Protocol):
    """Bytes being added to one upload, by the one request that holds its lock."""

    @property
    def offset(self) -> int:
        """Bytes of the upload so far."""

    async def write(self, data: bytes) -> None:
        """Adds `data`. Raises StorageFull (with a prefix of `data` perhaps counted), StorageError or LeaseLost."""

    async def discard(self) -> None:
        """Takes back all that this writer added. Raises LeaseLost; then the upload is left as it is."""

    def abandon(self) -> None:
        """Leaves the upload as it is, because it is no longer ours: `close` then only lets go."""

    async def close(self, *, sync: bool) -> None:
        """Lets what was added count; with `sync`, it is durable before this returns. After `discard` it only lets go.

        Raises LeaseLost if what was added does not count because another holder has the upload. Lets go in any case.
        """


class VerifiedWriter(Writer, Protocol):
    """Bytes that count only once they were found right. They need not be where they will lie before that."""

    async def verify(self, checksum: Checksum) -> bool:
        """Whether all that was added has this checksum. If not, it is to be discarded.

        Raises StorageFull, StorageError, LeaseLost.
        """


@runtime_checkable
class ReceivesInPlace(Protocol):
    """A writer that has memory of its own for what comes in, so that it need not be copied there. For the event loop."""

    def get_buffer(self) -> memoryview | None:
        """Where the next bytes are wanted; None where that is no matter. It may be asked for without being used."""

    def write_view(self, data: memoryview) -> Awaitable[None] | None:
        """Adds `data`, which lies at the beginning of `get_buffer()`, or is only there during the call.

        What it returns, if anything, is awaited before there is more. Both raise StorageFull, StorageError, LeaseLost.
        """


class Store(Protocol):
    """The core that every store has: uploads can be created, with their bytes or before them, and grow.

    fence: of the upload's lock; what takes one raises LeaseLost.
    """

    async def create(self, info: UploadInfo, *, fence: Fence = UNFENCED) -> Upload:
        """Records a new upload without bytes. Raises UploadExists, StorageFull.

        fence: where the id is not just drawn, so that others may know it.
        """

    async def load(self, upload_id: str) -> Upload:
        """The upload as it stands. Raises UploadNotFound, UploadGone. Needs no lock and changes nothing."""

    async def recover(self, upload: Upload, *, fence: Fence) -> Upload:
        """Under the upload's lock, before it grows: undoes what an earlier holder left half done."""

    async def open_writer(self, upload: Upload, *, fence: Fence) -> Writer:
        """Opens the end of an upload. Bytes count as they are written."""

    async def save(self, info: UploadInfo, *, fence: Fence) -> None:
        """Replaces the record, all or nothing. Never creates one: raises UploadNotFound where there is none."""

    async def finish(self, info: UploadInfo, *, sync: bool, fence: Fence) -> None:
        """Records that an upload is finished, all or nothing; nothing but `finished_at` is new in `info`.

        With `sync`, the bytes are durable before that, and the record after it. Raises UploadNotFound where there is no record.
        """

    async def sync(self, upload: Upload, *, fence: Fence) -> None:
        """Returns when the bytes, the record and the directory entries of the upload are durable. Raises StorageError.

        fence: bytes that the system has thrown away are taken back within it.
        """

    async def free_space(self) -> int | None:
        """Bytes that can still be stored, or None where that has no bound."""

    async def check(self) -> None:
        """Raises StorageError if the store cannot be written to now."""


@runtime_checkable
class VerifiesChunks(Protocol):
    """Bytes can be written so that they count only once they were found right."""

    async def open_verified_writer(
        self,
        upload: Upload,
        checksum: Checksum | None,
        *,
        length: int | None,
        fence: Fence,
    ) -> VerifiedWriter:
        """Like `open_writer`, but nothing that is added counts before `close`, also across a crash.

        checksum: what the bytes will be verified with, if that is known in front. length: how many there will be, likewise.
        """


@runtime_checkable
class RemovesUploads(Protocol):
    """Uploads can be removed, and looked for when they are due."""

    async def remove(
        self,
        upload_id: str,
        *,
        fence: Fence,
        keep_tombstone: bool = True,
        unpublished: RemovalEvent | None = None,
    ) -> None:
        """Frees all that the upload occupies, and remembers that it existed. Nothing happens if it is gone already.

        remembered: False where no client was told of it, so that nobody will ask. untold: kept, without needing room, until
        `forget_removal`.
        """

    async def unpublished_removals(self) -> list[UnpublishedRemoval]:
        """The removals that were given an event that is still to be recorded."""

    async def finish_removal(self, removal: UnpublishedRemoval, *, fence: Fence) -> None:
        """Frees what a crash in the removal has left."""

    async def forget_removal(self, removal: UnpublishedRemoval, *, fence: Fence) -> None:
        """The event of a removal is recorded."""

    async def load_each(self, upload_ids: Sequence[str]) -> list[Upload | StorageError]:
        """Every upload as it stands, or what `load` would have raised, in the same order; for many at a time."""

    async def remove_each(
        self,
        uploads: Sequence[Upload],
        *,
        fences: Mapping[str, Fence],
        unpublished: Mapping[str, RemovalEvent] | None = None,
    ) -> list[bool | StorageError]:
        """Whether each was removed, or why it could not be, in the same order; for many at a time.

        fences: of the locks, by id. untold: as of `remove`, by id. False for those whose lock was lost.
        """

    def ids(self, skip: Skip = skip_entry) -> AsyncIterator[str]:
        """Every upload there is, in no particular order, with memory that does not grow with their number.

        skip: told of what cannot be read and is passed over. Raises StorageError if nothing at all can be read.
        """

    async def discard_fragment(self, upload_id: str, *, fence: Fence) -> bool:
        """Removes what a crash left of a creation that nobody was answered, once it is an hour old; returns whether it did."""

    async def missing_since(self, upload_id: str) -> float:
        """When this was asked first since the bytes of an upload went missing (BytesMissing), in seconds since the epoch."""

    async def tidy(self, *, tombstone_ttl: float) -> int:
        """Removes what crashes left behind and tombstones older than `tombstone_ttl` seconds; returns how many things went."""


@runtime_checkable
class KeepsSweepMarks(Protocol):
    """When sweeps ended is known beside the uploads."""

    @property
    def sweep_marks(self) -> SweepMarks:
        """The marks."""


@runtime_checkable
class ServesFiles(Protocol):
    """Finished uploads can be sent from a file descriptor."""

    async def open_file(self, upload: Upload) -> int:
        """A descriptor of the bytes, open for reading; the caller closes it. Raises UploadNotFound."""


@runtime_checkable
class JoinsParts(Protocol):
    """Uploads can be joined into one, and a join can wait for parts that are still being uploaded."""

    async def join(self, final: UploadInfo, parts: Sequence[Upload], *, fence: Fence) -> None:
        """Puts the bytes of `parts` together in order; the final has all of them or, after a crash, none.

        Raises UploadNotFound for a part that is gone by then.
        """

    async def await_parts(self, part_ids: Sequence[str], final_id: str) -> None:
        """Records that `final_id` lists these parts, and is not joined yet.

        Not fenced, nor is `forget_awaiting`: what outlives its final is tidied up, and is forgotten only after the join, which
        was fenced, when nobody needs it any more.
        """

    async def finals_awaiting(self, part_id: str) -> list[str]:
        """The finals for which `await_parts` recorded that they list `part_id`."""

    async def forget_awaiting(self, part_ids: Sequence[str], final_id: str) -> None:
        """Takes back what `await_parts` recorded."""

    async def remember_final(self, key: str, final_id: str) -> None:
        """Records which final was created from what `key` stands for, a digest in hexadecimal; before the final is created."""

    async def forget_final(self, key: str) -> None:
        """Takes back what `remember_final` recorded."""

    async def recall_final(self, key: str) -> str | None:
        """The id that was recorded last for `key`, for some days at least. The final need not be there any more."""


Box = Literal["waiting", "failed"]
"""Where an event lies: among those that are to be told, or those that were given up."""


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """An event of an upload in the outbox. sequence: its place among those of its upload. content: what was written.

    kept_at: when, in seconds since the epoch.
    """

    upload_id: str
    event_id: str
    sequence: int
    content: bytes
    kept_at: float


@dataclass(frozen=True, slots=True)
class OutboxCounts:
    """How many events lie where. oldest: when the one was kept that waits for the longest time, in seconds since the epoch."""

    waiting: int
    failed: int
    oldest: float | None


class Outbox(Protocol):
    """Events that are to be told, beside the uploads that they tell of. Each method raises StorageError.

    Whoever keeps events holds the upload's lock; whoever takes them out has the upload's turn (`tusd_workers.turn`).
    """

    async def keep(
        self, upload_id: str, event_id: str, content: bytes, *, sync: bool = False, fence: Fence
    ) -> None:
        """Adds an event behind the others of its upload, or writes one anew that is there already. sync: it is durable then.

        fence: of the upload's lock. Raises LeaseLost: then nothing was added.
        """

    async def of(self, upload_id: str, box: Box = "waiting") -> list[KeptEvent]:
        """The events of an upload in their order."""

    async def forget(
        self, event: KeptEvent, box: Box = "waiting", *, fence: Fence = UNFENCED
    ) -> None:
        """It is told, or not to be told any more. fence: of the upload's lock, for those who are not telling it."""

    async def replace(self, event: KeptEvent, content: bytes) -> None:
        """Writes one that waits anew, all or nothing."""

    async def mark_failed(self, event: KeptEvent, content: bytes) -> None:
        """Puts one that waits among those that were given up, with this content."""

    async def replay(self, event: KeptEvent, content: bytes) -> None:
        """Puts one that was given up among those that wait, with this content."""

    def uploads(self) -> AsyncIterator[list[str]]:
        """The ids of all uploads with events that wait, some at a time, in no particular order."""

    def every(self, box: Box) -> AsyncIterator[KeptEvent]:
        """Every event there, those of one upload in order."""

    async def counts(self, *, exact: bool = False) -> OutboxCounts:
        """How many there are. Where many thousands wait, an estimate that costs the same however many, unless `exact`."""


@runtime_checkable
class KeepsEvents(Protocol):
    """Events can be kept beside the uploads, in whatever makes these durable."""

    @property
    def outbox(self) -> Outbox:
        """Where they are kept."""
