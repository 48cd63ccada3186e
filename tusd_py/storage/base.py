"""The contract of a store: a required core, and optional capabilities.

A store knows uploads, not requests: no headers, no locks, no protocol rules. It is the truth about bytes: the offset that it
reports is what it really holds, whatever happened before. Callers hold the upload's lock while they write, join, cut back or
remove; reading needs none. A lock can be lost at any instant, so every change of an existing upload is made within the lock's
`fence`: in any thread and after any wait, it is refused with LeaseLost once another holder has the upload. The small protocols
at the end are the optional capabilities; the server derives the extensions that it advertises from them.
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
"""Decimals of a second in a recorded time of a finish."""
_ID_SEGMENT = re.compile(r"[^./\\%:\x00-\x20\x7f][^/\\%:\x00-\x1f\x7f]*")
_is_ordinary_id = re.compile(r"[0-9a-f]{32}").fullmatch
_RESERVED_ENDINGS = (".info", ".part", ".lock")


class StorageError(Exception):
    """The store failed. The text is for the log, never for a client."""


class UploadNotFound(StorageError):
    """No upload has this id."""


class UploadUntrusted(UploadNotFound):
    """Another server's record and its data contradict each other; both are left untouched. The text says how."""


class UploadGone(StorageError):
    """The upload was removed, and its tombstone is still kept."""


class UploadExists(StorageError):
    """An upload with this id exists already."""


class VolumeMissing(StorageError):
    """The upload directory is not the one that was served before, as its volume may not be mounted."""


class StorageFull(StorageError):
    """No space is left. Bytes written before count."""


class BytesNotKept(StorageError):
    """The disk lost bytes that it had accepted. Bytes that may be lost no longer count."""


def is_valid_id(upload_id: str) -> bool:
    """Return whether `upload_id` may name an upload.

    It has at most 200 bytes of UTF-8 and no ending that the layout uses; its segments (between slashes) are not empty, do not
    start with a dot, and contain no control characters, `\\`, `%` or `:`.
    """
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
    """The byte counts in another server's record, where they and not the file are the truth about the bytes.

    Attributes:
        offset: Bytes that count.
        last_request: Bytes of them that the last request sent; 0 if unknown.
    """

    offset: int
    last_request: int = 0


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """An upload's record. Times are in seconds since the epoch.

    Attributes:
        id: The upload's id.
        length: Bytes; None while deferred or, for a final, until it can be computed.
        metadata: The decoded metadata.
        metadata_header: `Upload-Metadata` as the client sent it.
        concat_header: `Upload-Concat` as the client sent it.
        is_partial: Whether it is a part (tus 1.0.0, Concatenation).
        is_final: Whether it is joined from parts.
        parts: A final's parts, by id.
        created_at: When it was created.
        finished_at: When it was finished; None until the bytes are durable and the pre-finish hooks agreed.
        expire_after: Seconds without a byte after which it expires; 0 for never, None for the server's default.
        retain: Seconds to keep it once finished; 0 for ever, None for the server's default.
        owner: The authenticated owner; empty without authentication.
        max_size: Largest length that the owner's token allowed, in bytes; None for no limit.
        location: Path of the bytes relative to the store, if it is not the id.
        foreign: Recorded by another server, which has no `finished_at`.
        counted: That server's byte counts, if they are the truth about the bytes.
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
    """The current state of an upload: its record, and the truth about its bytes. Times are in seconds since the epoch.

    Attributes:
        info: The record.
        offset: Bytes that are held and count.
        changed_at: When the last byte arrived.
        joined: False only for a final whose parts are not joined yet.
        is_cut: The data has bytes that do not count; `Store.recover` removes them.
        expires_at: When it is to be removed, if its own age does not decide that: a part lives as long as the finals that list
            it. Usually None.
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
        """Whether all bytes have arrived. The upload is finished only once `info.finished_at` is set too."""
        return self.joined and self.info.length is not None and self.offset == self.info.length

    @property
    def finished(self) -> bool:
        return self.info.finished_at is not None

    @property
    def remaining(self) -> int | None:
        """Bytes still missing; None while the length is unknown."""
        return None if self.info.length is None else self.info.length - self.offset

    def with_info(self, **changes: object) -> Upload:
        """Return a copy with fields of the record changed."""
        info = replace(self.info, **changes)  # type: ignore[arg-type]
        return Upload(info, self.offset, self.changed_at, self.joined, self.is_cut)


class UploadDamaged(StorageError):
    """An upload's data permanently contradicts its record; the text says how. upload: its present state."""

    def __init__(self, message: str, upload: Upload) -> None:
        super().__init__(message)
        self.upload = upload


class BytesMissing(StorageError):
    """An upload has a record but no data. It may come back, for instance with an unmounted volume. info: the record."""

    def __init__(self, message: str, info: UploadInfo) -> None:
        super().__init__(message)
        self.info = info

    @property
    def upload(self) -> Upload:
        """The upload as far as known, with an offset of 0."""
        return Upload(self.info, 0, self.info.created_at)


@dataclass(frozen=True, slots=True)
class RemovalEvent:
    """The event of a removal that could not be put into the outbox before. offset: bytes that the upload had."""

    event_id: str
    offset: int


@dataclass(frozen=True, slots=True)
class UnpublishedRemoval:
    """A removed upload whose event is not in the outbox yet. keep_tombstone: see `RemovesUploads.remove`."""

    upload: Upload
    event: RemovalEvent
    keep_tombstone: bool


class Writer(Protocol):
    """Adds bytes to one upload, for the request that holds its lock."""

    @property
    def offset(self) -> int:
        """Bytes of the upload, including those added."""

    async def write(self, data: bytes) -> None:
        """Add `data`. Raises StorageFull (a prefix of `data` may count then), StorageError, LeaseLost."""

    async def discard(self) -> None:
        """Remove all bytes that this writer added. Raises LeaseLost; then the upload stays as it is."""

    def abandon(self) -> None:
        """Leave the upload as it is because the lock was lost; `close` then only releases resources."""

    async def close(self, *, sync: bool) -> None:
        """Make the added bytes count, and release all resources in any case. After `discard`, only release them.

        Args:
            sync: Make the bytes durable before this returns.

        Raises:
            LeaseLost: The bytes do not count because another holder has the upload.
        """


class VerifiedWriter(Writer, Protocol):
    """A writer whose bytes count only once their checksum is verified. They may be stored elsewhere until then."""

    async def verify(self, checksum: Checksum) -> bool:
        """Return whether the added bytes have this checksum; if not, the caller calls `discard`.

        Raises StorageFull, StorageError, LeaseLost.
        """


@runtime_checkable
class ReceivesInPlace(Protocol):
    """A writer that may offer its own buffer, so that received bytes need no copy. Called in the event loop."""

    def get_buffer(self) -> memoryview | None:
        """Return the buffer to receive the next bytes into; None for no preference. The caller need not use it."""

    def write_view(self, data: memoryview) -> Awaitable[None] | None:
        """Add `data`: the start of the buffer that `get_buffer` returned, or other memory that is valid during the call only.

        If it returns an awaitable, await that before adding more. Both raise StorageFull, StorageError, LeaseLost.
        """


class Store(Protocol):
    """The core of every store: create uploads, append to them, finish them.

    fence: that of the upload's lock; methods that take one raise LeaseLost.
    """

    async def create(self, info: UploadInfo, *, fence: Fence = UNFENCED) -> Upload:
        """Record a new upload without bytes. Raises UploadExists, StorageFull.

        fence: needed unless the id was drawn just now, so that no other client can know it.
        """

    async def load(self, upload_id: str) -> Upload:
        """Return the current state of an upload. Needs no lock, changes nothing. Raises UploadNotFound, UploadGone."""

    async def recover(self, upload: Upload, *, fence: Fence) -> Upload:
        """Undo what an earlier holder left incomplete. Called with the upload's lock, before it grows."""

    async def open_writer(self, upload: Upload, *, fence: Fence) -> Writer:
        """Open an upload for appending. Bytes count as soon as they are written."""

    async def save(self, info: UploadInfo, *, fence: Fence) -> None:
        """Replace the record atomically. Raises UploadNotFound if there is none: it is never created here."""

    async def finish(self, info: UploadInfo, *, sync: bool, fence: Fence) -> None:
        """Record atomically that an upload is finished. Raises UploadNotFound if there is no record.

        Args:
            info: The record, of which only `finished_at` has changed.
            sync: Make the bytes durable before, and the record after it.
            fence: Of the upload's lock.
        """

    async def sync(self, upload: Upload, *, fence: Fence) -> None:
        """Make the bytes, the record and the directory entries of the upload durable. Raises StorageError.

        fence: used to discard bytes that the kernel has lost.
        """

    async def free_space(self) -> int | None:
        """Return how many bytes can still be stored; None for no limit."""

    async def check(self) -> None:
        """Check that the store can be written to. Raises StorageError if not."""


@runtime_checkable
class VerifiesChunks(Protocol):
    """Chunks can be written so that they count only once their checksum is verified."""

    async def open_verified_writer(
        self,
        upload: Upload,
        checksum: Checksum | None,
        *,
        length: int | None,
        fence: Fence,
    ) -> VerifiedWriter:
        """Like `open_writer`, but added bytes count only after `close`, also across a crash.

        Args:
            upload: The upload.
            checksum: The checksum of the bytes to come, if known in advance.
            length: The number of bytes to come, if known in advance.
            fence: Of the upload's lock.
        """


@runtime_checkable
class RemovesUploads(Protocol):
    """Uploads can be listed and removed."""

    async def remove(
        self,
        upload_id: str,
        *,
        fence: Fence,
        keep_tombstone: bool = True,
        unpublished: RemovalEvent | None = None,
    ) -> None:
        """Free everything that the upload occupies and leave a tombstone. Does nothing if it is gone already.

        Args:
            upload_id: The upload.
            fence: Of its lock.
            keep_tombstone: False if no client was told of the upload.
            unpublished: The removal's event, if the outbox had no space for it. It is kept until `forget_removal`, which takes
                no space.
        """

    async def unpublished_removals(self) -> list[UnpublishedRemoval]:
        """Return the removals whose event is not in the outbox yet."""

    async def finish_removal(self, removal: UnpublishedRemoval, *, fence: Fence) -> None:
        """Free what a crash during the removal left."""

    async def forget_removal(self, removal: UnpublishedRemoval, *, fence: Fence) -> None:
        """Forget an unpublished removal: its event is in the outbox now."""

    async def load_each(self, upload_ids: Sequence[str]) -> list[Upload | StorageError]:
        """Load many uploads: for each, in order, its state or the error that `load` would raise."""

    async def remove_each(
        self,
        uploads: Sequence[Upload],
        *,
        fences: Mapping[str, Fence],
        unpublished: Mapping[str, RemovalEvent] | None = None,
    ) -> list[bool | StorageError]:
        """Remove many uploads.

        Args:
            uploads: The uploads.
            fences: The fences of their locks, by id.
            unpublished: Events as for `remove`, by id.

        Returns:
            For each upload, in order: True, False if its lock was lost, or the error.
        """

    def ids(self, skip: Skip = skip_entry) -> AsyncIterator[str]:
        """Yield the ids of all uploads in no particular order, in constant memory.

        skip: called for entries that cannot be read and are skipped. Raises StorageError if nothing at all can be read.
        """

    async def discard_fragment(self, upload_id: str, *, fence: Fence) -> bool:
        """Remove the remains of an interrupted, unanswered creation once they are an hour old; returns whether it did."""

    async def missing_since(self, upload_id: str, *, marks: bool = True) -> float:
        """Return when an upload's bytes were first found missing (BytesMissing), in seconds since the epoch.

        marks: record that it is now, if nothing is recorded.
        """

    async def tidy(self, *, tombstone_ttl: float) -> int:
        """Remove remains of crashes, and tombstones older than `tombstone_ttl` seconds; returns how many."""


@runtime_checkable
class KeepsSweepMarks(Protocol):
    """The times of sweeps are kept beside the uploads."""

    @property
    def sweep_marks(self) -> SweepMarks:
        """The marks."""


@runtime_checkable
class ServesFiles(Protocol):
    """Finished uploads can be sent from a file descriptor."""

    async def open_file(self, upload: Upload) -> int:
        """Return a descriptor of the bytes, open for reading; the caller closes it. Raises UploadNotFound."""


@runtime_checkable
class JoinsParts(Protocol):
    """Uploads can be joined into one, and a join can wait for parts that are still being uploaded."""

    async def join(self, final: UploadInfo, parts: Sequence[Upload], *, fence: Fence) -> None:
        """Concatenate the bytes of `parts`; after a crash the final has all of them or none.

        Raises UploadNotFound if a part is gone.
        """

    async def await_parts(self, part_ids: Sequence[str], final_id: str) -> None:
        """Record that `final_id` lists these parts and is not joined yet.

        This and `forget_awaiting` need no fence: `tidy` removes entries that outlive their final, and they are forgotten only
        after the join, which is fenced, when they are no longer needed.
        """

    async def finals_awaiting(self, part_id: str) -> list[str]:
        """Return the finals that list `part_id`, as `await_parts` recorded."""

    async def forget_awaiting(self, part_ids: Sequence[str], final_id: str) -> None:
        """Undo `await_parts`."""

    async def remember_final(self, key: str, final_id: str) -> None:
        """Record the final that is about to be created for `key`, a hexadecimal digest of its request."""

    async def forget_final(self, key: str) -> None:
        """Undo `remember_final`."""

    async def recall_final(self, key: str) -> str | None:
        """Return the id last recorded for `key`, kept for some days at least. The final may be gone."""


Box = Literal["waiting", "failed"]
"""The box of an event: waiting for delivery, or failed for good."""


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """An event of an upload in the outbox.

    Attributes:
        upload_id: The upload.
        event_id: The event's id.
        sequence: Its position among the events of its upload.
        content: Its serialized content.
        kept_at: When it was put there, in seconds since the epoch.
    """

    upload_id: str
    event_id: str
    sequence: int
    content: bytes
    kept_at: float


@dataclass(frozen=True, slots=True)
class OutboxCounts:
    """Numbers of events by box. oldest: when the oldest waiting one was put there, in seconds since the epoch."""

    waiting: int
    failed: int
    oldest: float | None


class Outbox(Protocol):
    """Events to be delivered, stored beside their uploads. Each method raises StorageError.

    A caller that adds events holds the upload's lock; one that delivers them holds the upload's delivery lease.
    """

    async def keep(
        self, upload_id: str, event_id: str, content: bytes, *, sync: bool = False, fence: Fence
    ) -> None:
        """Append an event to those of its upload; one that is there already is moved to the end with the new content.

        Args:
            upload_id: The upload.
            event_id: The event's id.
            content: Its serialized content.
            sync: Make it durable before this returns.
            fence: Of the upload's lock.

        Raises:
            LeaseLost: Nothing was added.
        """

    async def of(self, upload_id: str, box: Box = "waiting") -> list[KeptEvent]:
        """Return the events of an upload in order."""

    async def forget(
        self, event: KeptEvent, box: Box = "waiting", *, fence: Fence = UNFENCED
    ) -> None:
        """Remove an event: it is delivered, or void. fence: of the upload's lock, unless the caller delivers the event."""

    async def replace(self, event: KeptEvent, content: bytes) -> None:
        """Replace the content of a waiting event atomically."""

    async def mark_failed(self, event: KeptEvent, content: bytes) -> None:
        """Move a waiting event to the failed ones, with this content."""

    async def replay(self, event: KeptEvent, content: bytes) -> None:
        """Move a failed event back to the waiting ones, with this content."""

    def uploads(self) -> AsyncIterator[list[str]]:
        """Yield the ids of all uploads with waiting events, in batches, in no particular order."""

    def every(self, box: Box) -> AsyncIterator[KeptEvent]:
        """Yield every event of a box, those of one upload in order."""

    async def counts(self, *, exact: bool = False) -> OutboxCounts:
        """Count the events. For many thousands it is an estimate of constant cost, unless `exact`."""


@runtime_checkable
class KeepsEvents(Protocol):
    """Events can be stored beside the uploads, as durably as these."""

    @property
    def outbox(self) -> Outbox:
        """The outbox."""
