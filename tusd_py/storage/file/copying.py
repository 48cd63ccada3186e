"""Copying between files, inside the kernel where it can do that. Blocking calls: for threads."""

from __future__ import annotations

import errno
import os
import sys

_READ_BYTES = 1024 * 1024
_CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}


def copy_some(source: int, target: int, count: int, offset: int) -> int:
    """Append bytes of one file to another.

    Uses `copy_file_range`, which shares blocks on file systems that can; elsewhere reads and writes.

    Args:
        source: Descriptor to copy from.
        target: Descriptor to append to.
        count: The most bytes to copy.
        offset: Where they start in `source`.

    Returns:
        How many bytes were copied, at least one.

    Raises:
        OSError: Copying failed; EIO if `source` has no bytes there.
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
    data = os.pread(source, min(count, _READ_BYTES), offset)
    written = 0
    while written < len(data):
        written += os.write(target, data[written:])
    return written
