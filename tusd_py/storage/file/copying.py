"""Copying between files without their bytes passing through this process where the kernel can do that.

Blocking calls: they belong in a thread.
"""

from __future__ import annotations

import errno
import os
import sys

_PLAIN_STEP = 1024 * 1024
_CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}


def copy_some(source: int, target: int, count: int, offset: int) -> int:
    """Appends at most `count` bytes of the descriptor `source`, from `offset` on, to `target`; returns how many, at least one.

    By `copy_file_range`, which shares blocks on file systems that can; by reading and writing elsewhere. Raises OSError, and
    OSError(EIO) for a source that has no such bytes.
    """
    copied = _copy(source, target, count, offset)
    if copied == 0:
        raise OSError(errno.EIO, "a part is shorter than its length")
    return copied


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
