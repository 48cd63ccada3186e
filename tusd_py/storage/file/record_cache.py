"""Records that were read or written before, so that the requests of one upload need not read its record each time.

The file is asked each time whether it is still the one that was read: its inode, its size, and its times of change. A finish
is written into a record where it lies and leaves its size alone, and a file system's clock may stand still for longer than an
upload takes: so of a record that had just changed when it was read, the ending is read again, until it has been left alone
for long enough. How many are kept depends on their size, because a client decides how much metadata an upload has. Not for:
what may be true without the file, which is nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from sys import getsizeof

from tusd_py.storage.base import UploadInfo
from tusd_py.storage.file import records

_MAX_BYTES = 32 * 1024 * 1024
"""Bytes of memory for one process's records, some 25,000 ordinary ones. Reading one anew takes a third of a HEAD's time."""
_MAX_RECORD_BYTES = _MAX_BYTES // 32
"""Bytes of the largest record that is kept: a few clients with as much metadata as they may send push nobody else out."""
_ENTRY_BYTES = 400
"""What a record takes beside its values: the entry in the cache, its key and signature, and the record's own fields."""
_COARSEST_CLOCK_NS = 2_000_000_000
"""Nanoseconds. No file system of this machine counts its times in longer steps."""

_Sign = tuple[int, int, int, int]


@dataclass(slots=True)
class _Known:
    """read_at: when the file was known to hold the record, in nanoseconds since the epoch. size: bytes of memory."""

    sign: _Sign
    info: UploadInfo
    read_at: int
    size: int


class RecordCache:
    """The records of the uploads that were asked for last. Safe for use from several threads."""

    def __init__(self) -> None:
        # A plain dict looks for its first entry past all that were taken out.
        self._records: OrderedDict[str, _Known] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Bytes of memory that the records take, by estimate."""
        return self._bytes

    def remember(self, info: UploadInfo, status: os.stat_result, *, read_at: int = 0) -> None:
        """The file with this status holds this record.

        read_at: a moment before the file was read, in nanoseconds since the epoch; 0 if it has just been written.
        """
        size = size_of(info)
        with self._lock:
            before = self._records.pop(info.id, None)
            if before is not None:
                self._bytes -= before.size
            if size > _MAX_RECORD_BYTES:
                return
            self._records[info.id] = _Known(_sign(status), info, read_at, size)
            self._bytes += size
            while self._bytes > _MAX_BYTES:
                self._bytes -= self._records.popitem(last=False)[1].size

    def recall(self, upload_id: str, path: str, status: os.stat_result) -> UploadInfo | None:
        """The record in the file at `path`, which has this status, if it is known. Raises OSError."""
        known = self._records.get(upload_id)
        if known is None or known.sign != _sign(status):
            return None
        if known.read_at - status.st_ctime_ns < _COARSEST_CLOCK_NS:
            now = time.time_ns()
            if _ending_of(path, status.st_size) != records.ending(known.info.finished_at):
                return None
            known.read_at = now
        return known.info


def size_of(info: UploadInfo) -> int:
    """Bytes of memory that a record takes, by estimate: no less than it really does, unless its values are shared."""
    size = _ENTRY_BYTES + getsizeof(info.id) + getsizeof(info.metadata)
    size += getsizeof(info.metadata_header) + getsizeof(info.concat_header) + getsizeof(info.owner)
    for key, value in info.metadata.items():
        size += getsizeof(key) + getsizeof(value)
    if info.parts:
        size += getsizeof(info.parts) + sum(map(getsizeof, info.parts))
    if info.location is not None:
        size += getsizeof(info.location)
    return size


def _ending_of(path: str, size: int) -> bytes:
    """The bytes of a record that tell whether its upload is finished."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        length = len(records.UNFINISHED)
        # One more than expected: a file that has grown is another one.
        return os.pread(descriptor, length + 1, max(0, size - length))
    finally:
        os.close(descriptor)


def _sign(status: os.stat_result) -> _Sign:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
