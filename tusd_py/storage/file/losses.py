"""Write-back failures: when the disk lost bytes that it had accepted, and which bytes cannot be trusted since.

The kernel reports a failed write-back once: to the file's open descriptors, or to the next one that is opened, and it forgets
the report when the file leaves the page cache. To `syncfs` it reports it once per descriptor. So a loss may already have been
reported to another descriptor by the time the upload is finished. Hence these rules:

- A failed sync is recorded in `.tusd-py/write-back-failed`, for all servers of the directory and across restarts. Each loss has
  a number, the file's mtime.
- No byte counts of an unfinished upload that was begun before the last loss, as its state is unknown; its client sends it
  again. What was begun after a loss has its number in `.tusd-py/since-loss`: clocks may be set back, so times are not compared.
- If all bytes came with one request, the descriptor that wrote them tells whether they were lost. If it was open during the
  loss and reports nothing, they count as begun after it.
- Bytes of several requests are synced by `syncfs`, which reports losses of any file since the server started, and earlier
  unreported ones.
- With durability `chunk`, bytes not being written now were synced by the descriptor that wrote them.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from tusd_py.storage.file.files import opened
from tusd_py.storage.file.fsync import BytesLost, report_loss, sync_path
from tusd_py.storage.file.markers import ChunkMarkers

logger = logging.getLogger(__name__)

_NUMBERED = b"see its mtime\n"
"""Content of the file; those of earlier versions are empty."""
_MAX_UPLOADS = 16_384
_CACHED_SECONDS = 10.0
"""Time after its close in which a file is certain to be in the page cache, with its unreported errors."""


_DISTINCT_NS = 2_000_000_000
"""Between the numbers of two losses, as some file systems count times in steps of two seconds."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The last loss. is_time: recorded by an earlier version, so that the number is compared with the times of data files."""

    number: int
    is_time: bool


class Losses:
    """The record of write-back failures, in the file at `path`. since: of uploads begun after a loss, with its number."""

    def __init__(self, path: str, since: ChunkMarkers, file_perms: int) -> None:
        self._path = path
        self._since = since
        self._file_perms = file_perms
        self._lock = threading.Lock()
        self._is_shared = True
        self._known: Loss | None = None
        self.count = 0

    def open(self, *, is_shared: bool) -> None:
        """Read the last loss: once, unless other processes may record some (is_shared). Raises OSError."""
        self._known = self._recorded()
        self._is_shared = is_shared

    def record(self) -> None:
        """Record a failure: bytes written before are no longer trusted. For any thread."""
        with self._lock:
            self.count += 1
            try:
                self._touch()
                self._known = self._recorded()
            except OSError as problem:
                logger.error(
                    "cannot record at %s that the disk lost bytes: %s",
                    self._path,
                    problem,
                )
        logger.error(
            "the disk lost bytes that were written to it: unfinished uploads that may be affected start again from 0; "
            "see the system's log for the reason"
        )

    def _touch(self) -> None:
        with opened(self._path, os.O_WRONLY | os.O_CREAT, self._file_perms) as descriptor:
            status, number = os.fstat(descriptor), time.time_ns()
            if abs(number - status.st_mtime_ns) < _DISTINCT_NS:
                number = status.st_mtime_ns + _DISTINCT_NS
            # A full disk takes no content; the loss counts by its time then, as those of earlier versions do.
            with suppress(OSError):
                os.pwrite(descriptor, _NUMBERED, 0)
            os.utime(descriptor, ns=(number, number))
            with suppress(OSError):
                os.fsync(descriptor)
        with suppress(OSError):
            sync_path(os.path.dirname(self._path))

    def last(self) -> Loss | None:
        """Return the last loss; None if there was none. Raises OSError."""
        return self._recorded() if self._is_shared else self._known

    def _recorded(self) -> Loss | None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        return Loss(status.st_mtime_ns, is_time=not status.st_size)

    def number(self) -> int:
        """Return the number of the last loss; 0 if there was none. Raises OSError."""
        loss = self.last()
        return 0 if loss is None else loss.number

    def concerns(self, name: str, changed_at: int) -> bool:
        """Return whether the bytes of an unfinished upload may be lost. Raises OSError.

        name: its `flat_name`. changed_at: the mtime of its data file, in nanoseconds since the epoch.
        """
        loss = self.last()
        if loss is None or self._since.read(name) == loss.number:
            return False
        return not loss.is_time or changed_at <= loss.number


def untrusted() -> BytesLost:
    """Return the error of bytes that may be lost."""
    return BytesLost(errno.EIO, "the disk lost bytes, perhaps these")


@dataclass(slots=True)
class Written:
    """State of the bytes that this process wrote of an upload.

    Attributes:
        starts_sound: Earlier bytes cannot have been lost unnoticed.
        loss: The number of the last loss when writing began.
        closed_at: When the file was closed, by the monotonic clock; infinite while it is open.
        durable_to: The length up to which all bytes are known to be durable.
        is_own: This process wrote all bytes behind `durable_to`.
        is_marked: It is recorded that the bytes come from this session.
        may_be_marked: It may be, by another process or an earlier one.
    """

    starts_sound: bool
    loss: int
    closed_at: float = float("inf")
    durable_to: int = 0
    is_own: bool = False
    is_marked: bool = False
    may_be_marked: bool = False

    @property
    def has_witness(self) -> bool:
        """Whether the data file itself still reports every loss."""
        return self.starts_sound and time.monotonic() - self.closed_at < _CACHED_SECONDS


@dataclass(slots=True, eq=False)
class LossWatch:
    """Detects losses while bytes are added to one data file through one descriptor, opened before.

    on_sound: called with the number of a loss that did not concern these bytes.
    """

    losses: Losses
    written: Written
    on_sound: Callable[[int], None]
    is_lost: bool = field(default=False, init=False)
    _seen: int = field(init=False)

    def __post_init__(self) -> None:
        self._seen = self.losses.count

    def check(self, descriptor: int) -> None:
        """If this process learned of a loss, raise BytesLost if these bytes may be affected."""
        if self.is_lost or self.losses.count != self._seen:
            self.recheck(descriptor)

    def is_due(self) -> bool:
        """Return whether any server of the directory recorded a loss since the file was opened. Raises OSError."""
        return (
            self.is_lost
            or self.losses.count != self._seen
            or self.losses.number() != self.written.loss
        )

    def recheck(self, descriptor: int) -> None:
        """Raise BytesLost if these bytes may be lost."""
        # Before the descriptor is asked: a loss that is recorded meanwhile has another number.
        seen, number = self.losses.count, self.losses.number()
        try:
            if self.is_lost or not self.written.starts_sound:
                raise untrusted()
            report_loss(descriptor)
        except BytesLost:
            self.is_lost = True
            raise
        self._seen = seen
        if number != self.written.loss:
            self.on_sound(number)
            self.written.loss = number

    def failed(self) -> None:
        """Record that a sync of the file reported a loss."""
        self.is_lost = True
        self.losses.record()


class WrittenUploads:
    """The states of the uploads that were written to last."""

    def __init__(self, *, syncs_chunks: bool) -> None:
        self._syncs_chunks = syncs_chunks
        self._written: OrderedDict[str, Written] = OrderedDict()

    def begin(self, upload_id: str, offset: int, loss: int) -> Written:
        """Start writing to an upload from `offset` on, after the loss with this number; returns its new state."""
        before = self._written.pop(upload_id, None)
        is_durable = before is not None and offset <= before.durable_to
        written = Written(
            starts_sound=self._syncs_chunks or not offset or is_durable,
            loss=loss,
            durable_to=offset if is_durable else 0,
            is_own=not offset or is_durable,
            # Not of an upload that had the same id.
            is_marked=bool(offset) and before is not None and before.is_marked,
            may_be_marked=bool(offset),
        )
        self._written[upload_id] = written
        if len(self._written) > _MAX_UPLOADS:
            self._written.popitem(last=False)
        return written

    def of(self, upload_id: str) -> Written | None:
        """Return an upload's state; None if it was not written to recently."""
        return self._written.get(upload_id)
