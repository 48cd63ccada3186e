"""Joining files without their bytes passing through this process where the kernel can do that.

Blocking calls: they belong in a thread.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence

_STEP = 64 * 1024 * 1024
_PLAIN_STEP = 1024 * 1024
_CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}


class CopyStopped(Exception):
    """The caller asked for an end before all bytes were copied."""


def append_files(
    target: int, sources: Sequence[tuple[int, int]], stopped: Callable[[], bool]
) -> int:
    """Appends `(descriptor, bytes)` sources to the descriptor `target`, in order; returns the number of bytes.

    By `copy_file_range`, which shares blocks on file systems that can; by reading and writing elsewhere. `stopped` is asked
    between steps. Raises OSError, and OSError(EIO) for a source that is shorter than announced; CopyStopped.
    """
    total = 0
    for source, size in sources:
        offset = 0
        while offset < size:
            if stopped():
                raise CopyStopped
            copied = _copy(source, target, min(_STEP, size - offset), offset)
            if copied == 0:
                raise OSError(errno.EIO, "a part is shorter than its length")
            offset += copied
        total += size
    return total


def _copy(source: int, target: int, count: int, offset: int) -> int:
    if sys.platform == "linux":
        try:
            return os.copy_file_range(source, target, count, offset_src=offset)
        except OSError as problem:
            if problem.errno not in _CANNOT:
                raise
    data = os.pread(source, min(count, _PLAIN_STEP), offset)
    written = 0
    while written < len(data):
        written += os.write(target, data[written:])
    return written
