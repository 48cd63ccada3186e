"""The lock on an upload directory, for one process or several; the kernel releases it when a process ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from contextlib import suppress

from tusd_py import logs

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


class DirectoryHeld(Exception):
    """Another process holds the directory. The text is its process id, if known."""


def acquire(path: str, *, exclusive: bool, perms: int, wait: float) -> int:
    """Lock the file at `path` and record this process in it; blocking. Returns its descriptor, which holds the lock.

    wait: seconds to wait for another process to release it. Raises DirectoryHeld, OSError.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, perms)
    except OSError as problem:
        if problem.errno != errno.EROFS:
            raise
        # A file from an earlier start can be locked even if it is read-only.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, wait)
        with suppress(OSError):
            # On a full or read-only disk other processes do not learn who holds the lock.
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, kind: int, wait: float) -> None:
    deadline = time.monotonic() + wait
    told = False
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            left = deadline - time.monotonic()
            if left <= 0:
                raise DirectoryHeld(holder) from None
        else:
            return
        if not told:
            told = True
            logs.event(
                logger,
                logging.INFO,
                "waiting for the directory",
                message=f"Waiting up to {wait:g} s for process {holder} to release the upload directory",
            )
        time.sleep(min(_POLL_SECONDS, left))
