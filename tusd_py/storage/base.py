"""The contract of a store: what uploads, events and sweeps need of the place where bytes lie.

A store knows uploads, not requests: no headers, no locks, no protocol rules. `Store` is what each store does. What only some
can do are its attributes `verifies_chunks`, `reads_unfinished`, `has_one_clock`, `most_bytes`, `joiner` and `volume`: they are
read once, when a service is built, and the extensions and the maximum size that a server advertises follow from them.

Callers hold the upload's lock while they write, join, cut back or remove; reading needs none. A lock can be lost at any
instant, so every change of an existing upload is made within the lock's `fence`, in any thread and after any wait. A store of
files enters the fence around the system call, and the range lock of `locks/ofd.py` keeps other holders out until it returns.
A store behind a network enters it right before it sends a request, which proves only that the lock was held until then; so it
makes what arrives late harmless: bytes are addressed by their position, a record is replaced only on condition that it is
still the one that was read (`If-Match`), and the tombstone tells which events of a removed upload have happened. If the
condition fails it raises LeaseLost, as the fence does.

What has to hold for every store, whatever it is made of:

- The store is the truth about bytes: the offset is what it holds without a gap, never a number kept beside the bytes. After a
  kill at any instant `load` tells the truth, and appending at that offset gives the same bytes as without the interruption.
- What arrived is kept: bytes that were passed to `write` count once `close` has returned, and mostly before. The exception is
  a verified chunk, which counts whole once `verify` has agreed and `close` has returned, or not at all.
- Durable when it says so: `sync`, `finish` and `close` with `sync` return once a power cut changes nothing any more.
- Memory does not grow with uploads or their sizes: a writer holds a bounded number of buffers, and makes its caller wait while
  they are full.
- The event loop is never blocked: what may wait runs in a thread, or is awaited.
- A record is replaced atomically, and created by `create` alone: `save` and `finish` of an upload that was removed raise
  UploadNotFound. After `create` has raised, there is no upload.
- A failure that may pass is never UploadNotFound: a client that is told so sends everything again.

The suite in `tests/contracts/` holds every store to this.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

from tusd_py.locks.base import UNFENCED, Fence, Locks
from tusd_py.protocol.checksum import Checksum
from tusd_py.protocol.metadata import text_of
from tusd_py.protocol.tus import Content
from tusd_py.storage.skipped import Skip, skip_entry

MAX_ID_BYTES = 200
TIME_DIGITS = 6
"""Decimals of a second in a recorded time of a finish."""
LONGEST_SECONDS = 1e15
"""Longest time for which an upload may be kept."""
_ID_SEGMENT = re.compile(r"[^./\\%:\x00-\x20\x7f][^/\\%:\x00-\x1f\x7f]*")
_is_ordinary_id = re.compile(r"[0-9a-f]{32}").fullmatch
RESERVED_ENDINGS = (".info", ".part", ".lock")


class StorageError(Exception):
    """The store failed. The text is for the log, never for a client."""


class UploadNotFound(StorageError):
    """No upload has this id."""


class UploadUntrusted(UploadNotFound):
    """Another server's record and its data contradict each other; both are left untouched. The text says how."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What a tombstone tells of its upload. created_at: of the upload, to distinguish it from others with the same id.

    finished: whether it was finished. event_id: of the event of its removal.
    """

    created_at: float
    finished: bool
    event_id: str


class UploadGone(StorageError):
    """The upload was removed, and its tombstone is still kept. removed: what that tells; None where it tells nothing."""

    def __init__(self, message: str, removed: Removed | None = None) -> None:
        super().__init__(message)
        self.removed = removed


class LocationRefused(StorageError):
    """A hook chose a place that the operator does not allow, or that the store does not have. The text says why."""


class ForeignObject(StorageError):
    """An object that this server did not store is where an upload's bytes belong. It is not replaced; the text names it."""


class UploadExists(StorageError):
    """An upload with this id exists already."""


class PlaceTaken(UploadExists):
    """The place for the bytes of a new upload is taken, though its id is not."""


class UploadUnreachable(StorageError):
    """It cannot be told whether the upload exists, for instance because a volume below the upload directory is not mounted."""


class RecordUnreadable(StorageError):
    """What is in the place of an upload's record is no record. The text says why."""


class VolumeMissing(StorageError):
    """The upload directory is not the one that was served before, as its volume may not be mounted."""


class StorageUnavailable(StorageError):
    """The store does not respond now, or asks to slow down; what it acknowledged is kept."""


class StorageFull(StorageError):
    """No space is left. Bytes written before count."""


class ResourcesExhausted(StorageError):
    """The process or the system has no file descriptor or memory left, perhaps for a moment only. What is stored stays."""


class BytesNotKept(StorageError):
    """The disk lost bytes that it had accepted. Bytes that may be lost no longer count."""


def is_random_id(upload_id: str) -> bool:
    """Return whether an id looks like those that the server draws, which no hook can guess."""
    return _is_ordinary_id(upload_id) is not None


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
        and not upload_id.endswith(RESERVED_ENDINGS)
        and all(_ID_SEGMENT.fullmatch(segment) for segment in upload_id.split("/"))
    )


async def batched_ids(ids: AsyncIterator[str], size: int) -> AsyncIterator[list[str]]:
    """Yield ids in lists of `size`, as a question about many costs little more than one; the last may have fewer."""
    batch: list[str] = []
    async for upload_id in ids:
        batch.append(upload_id)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class Counted:
    """The byte counts in another server's record, where they and not the file are the truth about the bytes.

    offset: bytes that count. last_request: those of them that the last request sent; 0 if unknown.
    """

    offset: int
    last_request: int = 0


class UploadInfo(NamedTuple):
    """An upload's record. Times are in seconds since the epoch. A tuple, as a frozen dataclass takes six times as long to make.

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
        location: Path of the bytes relative to the store, if it is not the id; `s3://bucket/key` for a place outside of it.
        foreign: Recorded by another server, which has no `finished_at`.
        counted: That server's byte counts, if they are the truth about the bytes.
        awaits_completion: Only a request that says so completes it, whatever its length (Resumable Uploads for HTTP).
        repr_digest: `Repr-Digest` that its bytes must have when it is complete (RFC 9530); empty for none.
        wanted_digest: Algorithm of the digest that its creator wants to be told of it then, a key of `checksum.ALGORITHMS`.
        quota: Bytes that all uploads of the owner may take, by the token or hook of its creation; recorded if its length was
            unknown, and of parts and finals. None for the server's default.
        finished_path: Where it is, or will be, under the name of a finished file: an absolute path, or `s3://bucket/key`; empty
            without such a name.
    """

    id: str
    length: int | None
    metadata: Mapping[str, bytes] = MappingProxyType({})
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
    awaits_completion: bool = False
    repr_digest: str = ""
    wanted_digest: str = ""
    quota: int | None = None
    finished_path: str = ""

    @property
    def file_name(self) -> str:
        """The name of the file as its client sent it, see `text_of`; empty without one."""
        return text_of(self.metadata.get("filename") or self.metadata.get("name") or b"")


class DiskSpace(NamedTuple):
    """Space of a file system. free, size: in bytes. free_files: files that can still be created; None for no limit."""

    free: int
    size: int
    free_files: int | None


class Upload(NamedTuple):
    """The current state of an upload: its record, and the truth about its bytes. Times are in seconds since the epoch.

    Attributes:
        info: The record.
        offset: Bytes that are held and count.
        changed_at: When the last byte arrived.
        joined: False only for a final whose parts are not joined yet.
        is_cut: The data has bytes that do not count; `Store.recover` removes them.
        expires_at: When it is to be removed, if its own age does not decide that: a part lives as long as the finals that list
            it. Infinite for one that does not expire for now. Usually None.
        most_bytes: Most bytes that it can have in its place, where that is less than for others; else None.
        has_parts: Whether all parts of a final have all their bytes; told only of one that is not joined and is due.
    """

    info: UploadInfo
    offset: int
    changed_at: float
    joined: bool = True
    is_cut: bool = False
    expires_at: float | None = None
    most_bytes: int | None = None
    has_parts: bool = False

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def length(self) -> int | None:
        return self.info.length

    @property
    def complete(self) -> bool:
        """Whether all bytes have arrived. The upload is finished only once `info.finished_at` is set too."""
        return self.fills_length and not (self.info.awaits_completion and not self.finished)

    @property
    def fills_length(self) -> bool:
        """Whether there are as many bytes as the length says."""
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
        info = self.info._replace(**changes)  # type: ignore[arg-type]
        return self._replace(info=info, expires_at=None, has_parts=False)


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
    """A removed upload whose event is not in the outbox yet. keep_tombstone: see `Store.remove`."""

    upload: Upload
    event: RemovalEvent
    keep_tombstone: bool


class Writer(Protocol):
    """Adds bytes to one upload, for the request that holds its lock. Called in the event loop, by one caller at a time.

    The caller calls `close` in any case. Once that has returned or raised, the writer changes nothing any more, also if one of
    its calls was cancelled before.

    Each method raises LeaseLost if the lock was lost, StorageFull or another StorageError if the store failed; what was added
    before may count then.
    """

    @property
    def offset(self) -> int:
        """Bytes of the upload, including those added."""

    @property
    def kept(self) -> int:
        """Bytes of the upload that count if the process is killed now, also those added; a client may be told of them."""

    def get_buffer(self) -> memoryview | None:
        """Return memory to receive the next bytes into, so that they need no copy; None for no preference.

        It is valid until the next call of a method. Callers need not use it, and may ask again without having used it.
        """

    def write(self, data: memoryview) -> Awaitable[None] | None:
        """Add bytes; returns what to await before adding more, as when the disk is slow or all buffers are full, else None.

        data: the start of the buffer that `get_buffer` returned last, or other memory. It is valid during the call only, unless
        it is read-only, as that of `bytes` is.
        """

    async def verify(self, checksum: Checksum) -> bool:
        """Return whether the added bytes have this checksum. Only for a verified chunk, after its last byte.

        If they have, `close` makes them count; if not, the caller calls `discard`.
        """

    async def discard(self) -> None:
        """Remove all bytes that this writer added. After LeaseLost the upload stays as it is."""

    def abandon(self) -> None:
        """Leave the upload as it is because the lock was lost; `close` then only releases resources."""

    async def close(self, *, sync: bool, finishing: bool = False) -> None:
        """Make the added bytes count, and release all resources in any case. After `discard`, only release them.

        After LeaseLost they do not count, because another holder has the upload.

        Args:
            sync: Make the bytes durable before this returns (`durability = chunk`).
            finishing: `Store.finish` or `Store.settle` follows before anybody is told of the bytes and before the lock is
                released, so that the store may leave it to these to make them count if they complete the upload.
        """


class Reader(Protocol):
    """The bytes of one upload, open for reading. If it is removed meanwhile, they can be read on or are an error."""

    @property
    def descriptor(self) -> int | None:
        """A file descriptor to send the bytes from without a copy; None if they are in no file of this machine."""

    async def reserve(self) -> None:
        """Before the bytes are sent to a client: raise StorageUnavailable if the store cannot serve another one now."""

    def stream(self, start: int, count: int) -> AsyncGenerator[bytes, None]:
        """Yield `count` bytes from `start` on, in pieces. Raises StorageError if there are fewer or they cannot be read."""

    async def url(self, *, seconds: int, content_type: str, disposition: str) -> str | None:
        """Return a URL by which anybody can download the bytes for some seconds; None if the store has no such URLs.

        It is a secret: never log it. content_type, disposition: of the response.
        """

    def close(self) -> None:
        """Release all resources."""


Box = Literal["waiting", "failed"]
"""The box of an event: waiting for delivery, or failed for good."""


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """An event of an upload in the outbox.

    sequence: its position among the events of its upload. content: serialized. kept_at: when it was put there, in seconds since
    the epoch.
    """

    upload_id: str
    event_id: str
    sequence: int
    content: bytes
    kept_at: float


_FIRST_SEQUENCES = 500_000
"""Number of sequences with which the events of an upload may begin: half of those that a name has room for."""


def next_sequence(others: Iterable[KeptEvent]) -> int:
    """Return the sequence of an event that follows the other events of its upload.

    The first one begins by the clock, in seconds: a process that stood still may be about to remove an earlier event, whose
    name must not be used again.
    """
    first = int(time.time()) % _FIRST_SEQUENCES
    return max((other.sequence + 1 for other in others), default=first)


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

        sync: make it durable before this returns. fence: of the upload's lock; after LeaseLost nothing was added.
        """

    async def sync(self, upload_ids: Sequence[str]) -> None:
        """Make the waiting events of these uploads durable, and that others of theirs were removed."""

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


@dataclass(frozen=True, slots=True)
class SweepTimes:
    """When sweeps ran, in seconds since the epoch by the clock of the process that ran them.

    ended_at: when the last sweep that was not held ended; None if unknown. held_since: when a sweep was first held since then;
    None if none was.
    """

    ended_at: float | None
    held_since: float | None


class SweepMarks(Protocol):
    """The times of sweeps, kept beside the uploads. No method raises: marks only guard sweeps with a wrong clock."""

    async def read(self) -> SweepTimes:
        """Return the times; what cannot be read counts as unknown."""

    async def record_end(self, now: float) -> None:
        """Record the end of a sweep that was not held."""

    async def record_hold(self, now: float) -> None:
        """Record that a sweep is held."""


class Joiner(Protocol):
    """Joins uploads into one, also when the last of them is finished later (tus 1.0.0, "Concatenation").

    It also records which finals wait for which parts, and which final was created for which request.
    """

    async def join(self, final: UploadInfo, parts: Sequence[Upload], *, fence: Fence) -> None:
        """Give a final that has no bytes those of its parts, in order; after a crash it has all of them or none.

        parts: finished; one may be listed repeatedly. fence: of the final's lock; parts need none, as they never change. Raises
        UploadNotFound if a part is gone.
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

    async def remember_final(self, key: str, final_id: str, *, fence: Fence) -> None:
        """Record the final that is about to be created for `key`, a hexadecimal digest of its request.

        fence: of the lock on the key. Raises LeaseLost; then another request may create the final.
        """

    async def forget_final(self, key: str, final_id: str, *, fence: Fence) -> None:
        """Undo `remember_final`, unless another final is recorded for the key by now. Raises LeaseLost."""

    async def recall_final(self, key: str) -> str | None:
        """Return the id last recorded for `key`, kept for some days at least. The final may be gone."""


class Volume(Protocol):
    """Where a store lies, if something else may be there in its place, as when a directory's volume is not mounted.

    Servers remember the id elsewhere, and refuse to start where another one, or none, is found.
    """

    @property
    def id(self) -> str:
        """The id, kept with the uploads. There after `Store.open`; empty where none could be stored."""

    def sync_id(self) -> None:
        """Make the id durable, before it is remembered elsewhere. Blocking. Raises StorageError."""


Guard = Literal["exclusive", "shared", "none"]
"""How a process claims a store: alone, as locks in its memory require; together with others that share their locks; or not at
all, because its parent process has done so."""


class Store(Protocol):
    """Keeps uploads: their records, their bytes, their events.

    fence: that of the upload's lock; methods that take one raise LeaseLost. Every method raises StorageError for a failure.
    """

    # What a store may be unable to do: fixed when it is made, and read once by who builds a service.

    @property
    def verifies_chunks(self) -> bool:
        """Whether bytes can be written that count only once their checksum is verified (tus 1.0.0, "Checksum")."""

    @property
    def reads_unfinished(self) -> bool:
        """Whether bytes can be read as they lie; elsewhere `sync` has to put those of a complete upload together first."""

    @property
    def has_one_clock(self) -> bool:
        """Whether each process learns at once, and by its own clock, when the last byte of an upload arrived at any of them.

        Not so where several machines write, nor where bytes are gathered before they are stored.
        """

    @property
    def most_bytes(self) -> int | None:
        """Most bytes that an upload can have; None for no limit but the space that there is."""

    @property
    def joiner(self) -> Joiner | None:
        """Joins parts; None if the store cannot do that."""

    @property
    def volume(self) -> Volume | None:
        """How to recognize the place of the store; None if no other can be taken for it, as with a bucket."""

    # Kept beside the uploads, as durably as these.

    @property
    def outbox(self) -> Outbox:
        """The events to be delivered. It can be used without `open`."""

    @property
    def sweep_marks(self) -> SweepMarks:
        """The times of sweeps."""

    # Opening and closing

    def open(self, guard: Guard = "exclusive", *, wait: float = 0.0) -> None:
        """Prepare the store for changes. Blocking: called at the start, in a thread without an event loop.

        Args:
            guard: How to claim the store. One that cannot tell whether another process uses it ignores this.
            wait: Seconds to wait until another process releases it.

        Raises:
            StorageError: The store cannot be used; the text says why, and what to do.
        """

    async def stop(self) -> None:
        """Release all resources, after operations in progress. What takes long, a join for instance, is broken off."""

    async def check(self) -> None:
        """Check that the store can be written to, for the readiness of the server. Raises StorageError if not."""

    async def free_space(self) -> int | None:
        """Return how many bytes can still be stored; None for no limit, as with an object store."""

    async def disk_space(self) -> DiskSpace | None:
        """Return the space of the disk that uploads are on; None if there is no disk to fill. Raises StorageError."""

    # The life of an upload

    def locate(self, upload_id: str, *, bucket: str, prefix: str, key: str) -> str:
        """Return the location for the bytes of an upload that a hook placed; empty texts are no choice.

        prefix: what the key begins with; the id follows. key: the whole key, in place of prefix and id. Raises LocationRefused
        if the store has no such place, or the operator does not allow it.
        """

    async def create(self, info: UploadInfo, *, fence: Fence = UNFENCED) -> Upload:
        """Record a new upload without bytes. Its record may have more than `info`, such as how the store finds the bytes.

        fence: needed unless the id was drawn just now, so that no other client can know it.

        Raises:
            UploadExists: The id is taken; PlaceTaken if the location is.
            StorageFull: There is no space for it.
        """

    async def load(self, upload_id: str) -> Upload:
        """Return the current state of an upload. Needs no lock, changes nothing.

        Raises:
            UploadNotFound: No upload has this id, or its creation was interrupted.
            UploadGone: It was removed, and its tombstone is kept.
            UploadDamaged: Its data contradicts its record for good.
            BytesMissing: It has a record but no data, which may come back.
        """

    async def load_each(self, upload_ids: Sequence[str]) -> list[Upload | StorageError]:
        """Load many uploads: for each, in order, its state or the error that `load` would raise."""

    async def recover(self, upload: Upload, *, fence: Fence) -> Upload:
        """Undo what an earlier holder left incomplete. Called with the upload's lock, before it grows.

        A verified chunk that was interrupted is cut off here; until then `load` does not count it.
        """

    async def open_writer(self, upload: Upload, content: Content, *, fence: Fence) -> Writer:
        """Open an upload for appending at `upload.offset`. It was loaded and recovered under its lock.

        content: what is known of the bytes to come. If it is `verified`, which is asked only of a store that `verifies_chunks`,
        they count only after `Writer.verify` and `Writer.close`, also across a crash.
        """

    async def save(self, info: UploadInfo, *, fence: Fence) -> None:
        """Replace the record atomically. Raises UploadNotFound if there is none: it is never created here."""

    async def finish(self, info: UploadInfo, *, sync: bool, fence: Fence) -> None:
        """Record atomically that an upload is finished, or change nothing. May be repeated, also if a call was cancelled.

        info: the record, of which only `finished_at` has changed. sync: make the bytes durable before, and the record after it.
        Raises UploadNotFound if there is no record, BytesNotKept if bytes were lost, which count no longer.
        """

    async def name(self, upload: Upload, *, sync: bool, fence: Fence) -> UploadInfo:
        """Give a complete upload the name of a finished file, if it is to have one. May be repeated after a crash anywhere.

        sync: make the bytes durable before, and the name after it. Returns the record, which has the path.
        """

    async def take_name(self, info: UploadInfo, *, fence: Fence) -> None:
        """Undo `name` for an upload that is not finished after all."""

    def path_of(self, info: UploadInfo) -> str:
        """Return where hooks find the bytes of an upload: an absolute path, or `s3://bucket/key`."""

    async def settle(self, upload_id: str, *, fence: Fence) -> None:
        """Make bytes count that `Writer.close` left to `finish`, if that did not; does nothing for others.

        Once it has returned or raised, nothing is left to `finish` any more. Raises LeaseLost: they do not count.
        """

    async def sync(self, upload: Upload, *, fence: Fence) -> None:
        """Make the upload's bytes and its record durable; does nothing where they always are.

        fence: used to discard bytes that the kernel has lost. Raises BytesNotKept for them.
        """

    async def open_reader(self, upload: Upload) -> Reader:
        """Open the bytes of an upload that was loaded, all of which are there; it need not be finished yet.

        A store that can read bytes only once they are put together does that here, which changes nothing else.

        Raises what `load` does; UploadNotFound also if another upload has the id by now.
        """

    # Removal: it leaves a tombstone, by which clients are told that an upload is gone

    async def remove(
        self,
        upload_id: str,
        *,
        fence: Fence,
        event_id: str = "",
        keep_tombstone: bool = True,
        unpublished: RemovalEvent | None = None,
    ) -> None:
        """Free everything that the upload occupies and leave a tombstone. Does nothing if it is gone already.

        Once there is a tombstone the upload is gone, and a crash leaves only what `tidy` or `finish_removal` frees.

        Args:
            upload_id: The upload.
            fence: Of its lock.
            event_id: Of the removal's event, for the tombstone of a store in which an event may be stored late.
            keep_tombstone: False if no client was told of the upload.
            unpublished: The removal's event, if the outbox had no space for it. It is kept until `forget_removal`, which takes
                no space.
        """

    async def remove_each(
        self,
        uploads: Sequence[Upload],
        *,
        fences: Mapping[str, Fence],
        event_ids: Mapping[str, str] | None = None,
        unpublished: Mapping[str, RemovalEvent] | None = None,
    ) -> list[bool | StorageError]:
        """Remove many uploads; returns for each, in order: True, False if its lock was lost, or the error.

        fences, event_ids, unpublished: as for `remove`, by the upload's id.
        """

    async def unpublished_removals(self) -> list[UnpublishedRemoval]:
        """Return the removals whose event is not in the outbox yet."""

    async def finish_removal(self, removal: UnpublishedRemoval, *, fence: Fence) -> bool:
        """Free what a crash during an unpublished removal left; returns False if it was forgotten meanwhile.

        Called with the upload's lock, which the caller may have got after another process published the removal.
        """

    async def forget_removal(self, removal: UnpublishedRemoval, *, fence: Fence) -> None:
        """Forget an unpublished removal: its event is in the outbox now."""

    # Sweeps

    def ids(self, skip: Skip = skip_entry) -> AsyncIterator[str]:
        """Yield the ids of all uploads in no particular order, in constant memory.

        skip: called for entries that cannot be read and are skipped. Raises StorageError if nothing at all can be read.
        """

    async def discard_fragment(self, upload_id: str, *, fence: Fence) -> bool:
        """Remove the remains of an interrupted, unanswered creation once they are an hour old; returns whether it did.

        Called for ids that `ids` yielded and `load` does not know.
        """

    async def missing_since(self, upload_id: str, *, marks: bool = True) -> float:
        """Return when an upload's bytes were first found missing (BytesMissing), in seconds since the epoch.

        marks: record that it is now, if nothing is recorded.
        """

    async def tidy(self, *, tombstone_ttl: float, locks: Locks | None = None) -> int:
        """Remove remains of crashes, and tombstones older than `tombstone_ttl` seconds; returns how many.

        locks: of the uploads. A store that cannot do so in one step frees what a removed upload left under its lock, so that
        none with the same id begins meanwhile, and leaves it if the lock is held. None if nobody else uses the store.
        Raises LocksUnavailable, LocksClosed.
        """
