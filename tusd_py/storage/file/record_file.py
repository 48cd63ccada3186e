"""The file of a record, read whatever stands in its place: a pipe that nobody writes to, a link, gigabytes of something."""

from __future__ import annotations

import os
import stat

from tusd_py.storage.base import StorageError

_MAX_BYTES = 64 * 1024 * 1024
"""More than the record of a final with the most parts."""


def read_record(path: str) -> tuple[bytes, os.stat_result]:
    """The content of a record's file, and its status. Raises OSError, and StorageError for what is no such file."""
    # Without O_NONBLOCK the open of a pipe would wait for a writer; for a file it makes no difference.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"{path} is not a regular file")
        if status.st_size > _MAX_BYTES:
            raise StorageError(f"{path} has {status.st_size} bytes, which is no record")
        return os.read(descriptor, status.st_size + 1), status
    finally:
        os.close(descriptor)
