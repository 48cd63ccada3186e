"""Locks between processes that share a file system, without a server: open file description (OFD) locks on one file.

Every upload has a byte of that file, at an offset derived from its id; nothing is ever written there. A byte can be locked
shared or exclusively. The locks belong to an open file, so the kernel releases them however the process dies. A second byte of
an upload says that a waiter asks for its release. On NFS (version 4) other machines see the locks too.

A third byte is the fence: a change of an upload happens while its lock is held, or not at all. Its holder locks that byte
exclusively during each change, and a process that wants to end the holder's epoch needs it. So the epoch cannot end between the
check and the change, even if the holder's process is stopped there: the kernel keeps the byte locked. No one else ever locks
it, so a holder that does not get it is being taken over. A fence never waits.

The locks do not keep requests of one process apart, which share the open file, and do not exist on macOS.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from tusd_py.locks.base import LeaseLost

_FLOCK = "@hhqqi0q"
"""The system's struct flock: type, whence, start, length, process (0 for OFD locks)."""
_REQUESTED = 1 << 56
"""Offset of the second bytes."""
_CHANGE = 1 << 57
"""Offset of the third bytes."""
_fcntl = fcntl.fcntl
_SET = getattr(fcntl, "F_OFD_SETLK", -1)
_REFUSED = {errno.EAGAIN, errno.EACCES}


class OfdLocks:
    """The locks of one open file."""

    def __init__(self, path: str, *, perms: int = 0o640) -> None:
        """Open the file. Raises OSError if such locks are not supported."""
        if not hasattr(fcntl, "F_OFD_SETLK"):
            raise OSError(errno.ENOTSUP, "the system has no open file description locks")
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, perms)
        try:
            # Some file systems report only here that they have no locks.
            self._other(0)
        except OSError:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        """Release all locks."""
        # Reset first: another file may get the same number.
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)

    def acquire(self, upload_id: str, *, exclusive: bool) -> bool:
        """Lock the upload's byte if it is free; returns whether it was. If not, an earlier lock on it stays. Raises OSError."""
        return self._set(_range(fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, _offset(upload_id)))

    def release(self, upload_id: str) -> None:
        """Release the upload's byte. Raises OSError."""
        self._set(_range(fcntl.F_UNLCK, _offset(upload_id)))

    def is_held(self, upload_id: str) -> bool:
        """Return whether another process has locked the upload's byte. Raises OSError."""
        return self._other(_offset(upload_id))

    def change_byte(self, upload_id: str) -> ChangeByte:
        """Return the byte to lock during each change."""
        return ChangeByte(self, _CHANGE + _offset(upload_id))

    def set_requested(self, upload_id: str, *, on: bool) -> None:
        """Tell other processes whether a waiter here asks for the byte's release. Raises OSError."""
        self._set(_range(fcntl.F_RDLCK if on else fcntl.F_UNLCK, _REQUESTED + _offset(upload_id)))

    def is_requested(self, upload_id: str) -> bool:
        """Return whether a waiter in another process asks for the byte's release. Raises OSError."""
        return self._other(_REQUESTED + _offset(upload_id))

    def _set(self, lock: bytes) -> bool:
        """Set a lock without waiting; returns False if another file's lock prevents it. Raises OSError."""
        if self.descriptor < 0:
            raise OSError(errno.EBADF, "the locks are closed")
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, lock)
        except OSError as problem:
            if problem.errno in _REFUSED:
                return False
            raise
        return True

    def _other(self, offset: int) -> bool:
        """Return whether another open file has locked the byte. Raises OSError."""
        if self.descriptor < 0:
            raise OSError(errno.EBADF, "the locks are closed")
        answer = fcntl.fcntl(self.descriptor, fcntl.F_OFD_GETLK, _range(fcntl.F_WRLCK, offset))
        kind: int = struct.unpack(_FLOCK, answer)[0]
        return kind != fcntl.F_UNLCK


class ChangeByte:
    """One byte that is locked exclusively for a short time; its arguments are packed once."""

    __slots__ = ("_lock", "_ranges", "_unlock")

    def __init__(self, ranges: OfdLocks, offset: int) -> None:
        self._ranges = ranges
        self._lock = _range(fcntl.F_WRLCK, offset)
        self._unlock = _range(fcntl.F_UNLCK, offset)

    def acquire(self) -> None:
        """Lock the byte. Raises BlockingIOError if another open file has it, OSError, ValueError once the file is closed."""
        _fcntl(self._ranges.descriptor, _SET, self._lock)

    def release(self) -> None:
        """Unlock the byte. Raises OSError, ValueError once the file is closed."""
        _fcntl(self._ranges.descriptor, _SET, self._unlock)


def _range(kind: int, offset: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, offset, 1, 0)


def _offset(upload_id: str) -> int:
    """Derive an upload's offset, below 2^56. A collision is practically impossible and would only cost a wait."""
    return int.from_bytes(hashlib.blake2b(upload_id.encode(), digest_size=7).digest(), "big")


class ChangeFence:
    """See `Fence`. The threads of a process share its byte: the first one in locks it, the last one out releases it.

    Args:
        byte: That of the holder's epoch.
        is_current: Returns whether that epoch is still current; raises OSError.
        on_loss: Called in any thread, with the reason, when the lock turns out to be lost.
    """

    __slots__ = ("_byte", "_inside", "_is_current", "_lock", "_on_loss")

    def __init__(
        self, byte: ChangeByte, is_current: Callable[[], bool], on_loss: Callable[[str], None]
    ) -> None:
        self._byte = byte
        self._is_current = is_current
        self._on_loss = on_loss
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        # Runs around every write, hence with as few calls as possible.
        with self._lock:
            if not self._inside:
                try:
                    self._byte.acquire()
                    if not self._is_current():
                        self._refuse("another server took the upload over")
                except BlockingIOError:
                    self._refuse("another server is taking the upload over")
                except (OSError, ValueError) as problem:
                    self._refuse(f"the file system's locks: {problem}")
            self._inside += 1

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _problem: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._release()

    def _release(self) -> None:
        try:
            self._byte.release()
        except (OSError, ValueError):
            # The file was closed meanwhile, which released the byte.
            return

    def _refuse(self, reason: str) -> NoReturn:
        self._release()
        self._on_loss(reason)
        raise LeaseLost(reason)
