"""Records that were read or written before, so that the requests of one upload need not read its record each time.

The file is asked each time whether it is still the one that was read: its inode, its size, and its times of change. A finish
is written into a record where it lies and leaves its size alone, and a file system's clock may stand still for longer than an
upload takes: so of a record that had just changed when it was read, the ending is read again, until it has been left alone
for long enough. Not for: what may be true without the file, which is nothing.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from dataclasses import dataclass

from tusd_py.storage import info as records
from tusd_py.storage.base import UploadInfo

_MOST = 16_384
"""Records. Each takes a kilobyte, and so much time to read as a third of a HEAD."""
_COARSEST_CLOCK_NS = 2_000_000_000
"""Nanoseconds. No file system of this machine counts its times in longer steps."""

_Sign = tuple[int, int, int, int]


@dataclass(slots=True)
class _Known:
    """read_at: when the file was known to hold the record, in nanoseconds since the epoch."""

    sign: _Sign
    info: UploadInfo
    read_at: int


class KnownRecords:
    """The records of the uploads that were asked for last."""

    def __init__(self) -> None:
        # A plain dict looks for its first entry past all that were taken out.
        self._records: OrderedDict[str, _Known] = OrderedDict()

    def remember(self, info: UploadInfo, status: os.stat_result, *, read_at: int = 0) -> None:
        """The file with this status holds this record.

        read_at: a moment before the file was read, in nanoseconds since the epoch; 0 if it has just been written.
        """
        self._records.pop(info.id, None)
        self._records[info.id] = _Known(_sign(status), info, read_at)
        if len(self._records) > _MOST:
            self._records.popitem(last=False)

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
