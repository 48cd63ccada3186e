"""Safe reading of a record's file, even if a pipe, a link or a huge file is in its place."""

from __future__ import annotations

import errno
import os
import stat

from tusd_py.storage.base import RecordUnreadable

_MAX_BYTES = 64 * 1024 * 1024
"""More than the record of a final with the maximum of parts."""


def read_record(path: str) -> tuple[bytes, os.stat_result]:
    """Return the content and the status of a record's file. Raises OSError, RecordUnreadable if it is not a record."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer; files ignore it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as problem:
        if problem.errno != errno.ELOOP:
            raise
        raise RecordUnreadable(f"{path} is a symbolic link") from problem
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RecordUnreadable(f"{path} is not a regular file")
        if status.st_size > _MAX_BYTES:
            raise RecordUnreadable(f"{path} has {status.st_size} bytes, which is no record")
        return os.read(descriptor, status.st_size + 1), status
    finally:
        os.close(descriptor)
