"""When the disk could not keep what it had taken, and which bytes cannot be trusted since.

The system reports a failed write-back once: to the descriptors of the file that are open then, or to the next one that is
opened, and it forgets the report when the file leaves its memory. To `syncfs` it reports it once a descriptor. So what was
lost of an upload may have been reported to somebody else by the time at which it is finished. The rule that holds instead:

- A failed sync is recorded in `.tusd-py/write-back-failed`, whose time of change is when that was noticed, for all servers of
  the directory and across restarts.
- Of an unfinished upload that was last written to before that time nothing counts, as nothing tells what became of it; its
  client sends it again.
- Bytes that all came with one request have a witness, the descriptor by which they were written: it is asked.
- Bytes of several requests are synced by `syncfs`, which reports what went wrong with any of them since the server started, or
  earlier if nobody was told.
- With durability `chunk`, what is not being written was synced by the descriptor by which it was written.

Not for: syncing.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass

from tusd_py.storage.file.fsync import BytesLost, report_loss, sync_path

logger = logging.getLogger(__name__)

_MOST = 16_384
_RECENT_SECONDS = 10.0
"""For so long after it was closed a file is certain to be in the system's memory, with what is to be reported of it."""


class Losses:
    """What is recorded at `path` of writes that failed."""

    def __init__(self, path: str, file_perms: int) -> None:
        self._path = path
        self._file_perms = file_perms
        self._lock = threading.Lock()
        self.count = 0

    def record(self) -> None:
        """A write failed: from now on what was written before is not trusted. For any thread."""
        with self._lock:
            self.count += 1
            try:
                self._touch()
            except OSError as problem:
                logger.error(
                    "it could not be recorded at %s that the disk lost bytes: %s",
                    self._path,
                    problem,
                )
        logger.error(
            "the disk could not keep what was written to it: nothing counts of unfinished uploads that may have lost bytes, "
            "their clients send them again; look at the system's log for the reason"
        )

    def _touch(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, self._file_perms)
        try:
            # By the file system's clock, which is the one that data files are compared by.
            os.utime(descriptor)
            with suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with suppress(OSError):
            sync_path(os.path.dirname(self._path))

    def last(self) -> int:
        """When a write was last known to have failed, in nanoseconds since the epoch; 0 for never."""
        # Quicker than an exception where there is none, as nearly always.
        if not os.access(self._path, os.F_OK):
            return 0
        try:
            return os.stat(self._path).st_mtime_ns
        except FileNotFoundError:
            return 0


_CLOCK_STEP_NS = 20_000_000
"""Nanoseconds. File systems count their times in steps of a few milliseconds."""


def untrusted() -> BytesLost:
    """The error of bytes that may be lost, as far as is known."""
    return BytesLost(
        errno.EIO, "the disk lost bytes, and nothing tells whether these were among them"
    )


@dataclass(slots=True)
class Written:
    """What is known of the bytes of an upload that this process has written.

    starts_sound: nothing that was there before can have been lost unnoticed. began_at: nanoseconds since the epoch, or a little
    earlier. closed_at: by the monotonic clock, infinite while the file is open. durable_to: the length to which all bytes are
    known to be durable.
    """

    starts_sound: bool
    began_at: int
    closed_at: float = float("inf")
    durable_to: int = 0

    @property
    def has_witness(self) -> bool:
        """Whether the data file itself still knows of everything that was lost."""
        return self.starts_sound and time.monotonic() - self.closed_at < _RECENT_SECONDS


class LossWatch:
    """Looks out for losses while bytes are added to one data file by one descriptor, which was opened before."""

    __slots__ = ("_losses", "_seen", "is_lost", "written")

    def __init__(self, losses: Losses, written: Written) -> None:
        self._losses = losses
        self._seen = losses.count
        self.written = written
        self.is_lost = False

    def check(self, descriptor: int) -> None:
        """Raises BytesLost if this process learned of a loss, and these bytes may be among what was lost."""
        if self.is_lost or self._losses.count != self._seen:
            self.recheck(descriptor)

    def is_due(self) -> bool:
        """Whether any server of the directory has learned of a loss since the file was opened."""
        return (
            self.is_lost
            or self._losses.count != self._seen
            or self._losses.last() >= self.written.began_at
        )

    def recheck(self, descriptor: int) -> None:
        """Raises BytesLost if these bytes may be among what was lost."""
        seen = self._losses.count
        try:
            if self.is_lost or not self.written.starts_sound:
                raise untrusted()
            report_loss(descriptor)
        except BytesLost:
            self.is_lost = True
            raise
        self._seen = seen

    def failed(self) -> None:
        """A sync of the file reported a loss."""
        self.is_lost = True
        self._losses.record()


class WrittenUploads:
    """What is known of the uploads that were written to last."""

    def __init__(self, *, syncs_chunks: bool) -> None:
        self._syncs_chunks = syncs_chunks
        self._written: OrderedDict[str, Written] = OrderedDict()

    def begin(self, upload_id: str, offset: int) -> Written:
        """An upload is going to be written to, from `offset` on."""
        before = self._written.pop(upload_id, None)
        is_durable = before is not None and offset <= before.durable_to
        written = Written(
            starts_sound=self._syncs_chunks or not offset or is_durable,
            began_at=time.time_ns() - _CLOCK_STEP_NS,
            durable_to=offset if is_durable else 0,
        )
        self._written[upload_id] = written
        if len(self._written) > _MOST:
            self._written.popitem(last=False)
        return written

    def of(self, upload_id: str) -> Written | None:
        """None for an upload that was not written to of late."""
        return self._written.get(upload_id)

    def forget(self, upload_id: str) -> None:
        """The upload is finished or gone."""
        self._written.pop(upload_id, None)
