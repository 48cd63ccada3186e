"""Records that were read or written before, so that the requests of one upload need not read its record each time.

The file is asked each time whether it is still the one that was read: its inode, size and time of change. Not for: what may be
true without the file, which is nothing.
"""

from __future__ import annotations

import os
from collections import OrderedDict

from tusd_py.storage.base import UploadInfo

_MOST = 16_384
"""Records. Each takes a kilobyte, and so much time to read as a third of a HEAD."""

_Sign = tuple[int, int, int]


class KnownRecords:
    """The records of the uploads that were asked for last."""

    def __init__(self) -> None:
        # A plain dict looks for its first entry past all that were taken out.
        self._records: OrderedDict[str, tuple[_Sign, UploadInfo]] = OrderedDict()

    def remember(self, info: UploadInfo, status: os.stat_result) -> None:
        """The file with this status holds this record."""
        self._records.pop(info.id, None)
        self._records[info.id] = (_sign(status), info)
        if len(self._records) > _MOST:
            self._records.popitem(last=False)

    def recall(self, upload_id: str, status: os.stat_result) -> UploadInfo | None:
        """The record in the file with this status, if it is known."""
        known = self._records.get(upload_id)
        return known[1] if known is not None and known[0] == _sign(status) else None


def _sign(status: os.stat_result) -> _Sign:
    return status.st_ino, status.st_size, status.st_mtime_ns
