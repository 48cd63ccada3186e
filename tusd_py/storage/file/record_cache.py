"""A cache of records, so that the requests of one upload need not read its record each time.

An entry is valid while the file's inode, size, mtime and ctime are unchanged. A finish is written into a record in place and
leaves its size alone, and a coarse file system clock may not advance during a whole upload: so the ending of a record that was
changed shortly before it was read is read again, until it has been unchanged for long enough. A process that has the
directory to itself need not do so, as it remembers what it writes. The cache is limited by bytes, because clients decide how
much metadata an upload has.
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
from tusd_py.storage.file.files import opened

_MAX_BYTES = 32 * 1024 * 1024
"""Memory for one process's records, some 25,000 ordinary ones. Reading one again takes a third of a HEAD's time."""
_MAX_RECORD_BYTES = _MAX_BYTES // 16
"""Size of the largest cached record: that of a final of 10,000 parts, which takes milliseconds to parse. A few clients with
much metadata must not evict all others."""
_ENTRY_BYTES = 400
"""Memory that a record takes besides its values: the cache entry, its key and signature, and the record's own fields."""
_COARSEST_CLOCK_NS = 2_000_000_000
"""The longest step in which a local file system counts time."""

_Signature = tuple[int, int, int, int]


@dataclass(slots=True)
class _Entry:
    """A cached record. read_at: when the file held it, in nanoseconds since the epoch. size: bytes of memory."""

    signature: _Signature
    info: UploadInfo
    read_at: int
    size: int


class RecordCache:
    """The most recently used records. Safe for use from several threads.

    is_shared: whether other processes may change records.
    """

    def __init__(self) -> None:
        self.is_shared = True
        # Not a dict: finding its first entry scans past all removed ones.
        self._records: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Estimated memory of the records, in bytes."""
        return self._bytes

    def remember(self, info: UploadInfo, status: os.stat_result, *, read_at: int = 0) -> None:
        """Cache the record of a file with this status.

        read_at: a time before the file was read, in nanoseconds since the epoch; 0 if it was just written.
        """
        signature = _signature(status)
        with self._lock:
            before = self._records.pop(info.id, None)
            if before and read_at and before.signature == signature and not self.is_shared:
                # It may have been written after it was read; then this process has remembered what it wrote.
                self._records[info.id] = before
                return
            if before is None:
                size = size_of(info)
            else:
                self._bytes -= before.size
                size = before.size if _has_values_of(info, before.info) else size_of(info)
            if size > _MAX_RECORD_BYTES:
                return
            self._records[info.id] = _Entry(signature, info, read_at, size)
            self._bytes += size
            while self._bytes > _MAX_BYTES:
                self._bytes -= self._records.popitem(last=False)[1].size

    def recall(self, upload_id: str, path: str, status: os.stat_result) -> UploadInfo | None:
        """Return the cached record of the file at `path`, if it is valid for this status. Raises OSError."""
        known = self._records.get(upload_id)
        if known is None or known.signature != _signature(status):
            return None
        if self.is_shared and known.read_at - status.st_ctime_ns < _COARSEST_CLOCK_NS:
            now = time.time_ns()
            if _ending_of(path, status.st_size) != records.ending(known.info.finished_at):
                return None
            known.read_at = now
        return known.info


def size_of(info: UploadInfo) -> int:
    """Estimate a record's memory in bytes: not less than it really takes, unless its values are shared."""
    size = _ENTRY_BYTES + getsizeof(info.id) + getsizeof(info.metadata)
    size += getsizeof(info.metadata_header) + getsizeof(info.concat_header) + getsizeof(info.owner)
    for key, value in info.metadata.items():
        size += getsizeof(key) + getsizeof(value)
    if info.parts:
        size += getsizeof(info.parts) + sum(map(getsizeof, info.parts))
    if info.location is not None:
        size += getsizeof(info.location)
    return size


def _has_values_of(info: UploadInfo, before: UploadInfo) -> bool:
    """Whether two records of an upload share all values whose size differs, as they do before and after its finish."""
    return (
        info.metadata is before.metadata
        and info.metadata_header is before.metadata_header
        and info.concat_header is before.concat_header
        and info.owner is before.owner
        and info.parts is before.parts
        and info.location is before.location
    )


def _ending_of(path: str, size: int) -> bytes:
    """Read the end of a record, which says whether its upload is finished."""
    length = len(records.UNFINISHED)
    with opened(path, os.O_RDONLY | os.O_NOFOLLOW) as descriptor:
        # One more byte than expected, to detect a file that has grown.
        return os.pread(descriptor, length + 1, max(0, size - length))


def _signature(status: os.stat_result) -> _Signature:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
