"""Locks between processes that share a file system, without a server: ranges of one file, as fcntl has them.

Every upload has a byte of that file, at an offset made of its id; nothing is ever written there. A byte may be had by many at
a time or by one alone. They are had by an open file, so all that one process holds goes with it, whatever it dies of. A second
byte an upload tells that somebody waits for it who asks, a third is had during each change (`fence.py`). On NFS (version 4)
other machines see them too.

Not for: requests of one process, which share the open file; macOS, where such locks belong to a process as a whole.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct

_FLOCK = "@hhqqi0q"
"""What the system calls struct flock: kind, whence, start, length, process (0 for locks of an open file)."""
_ASKED = 1 << 56
"""Where the second bytes begin."""
_CHANGE = 1 << 57
"""Where the third bytes begin."""
_fcntl = fcntl.fcntl
_SET = getattr(fcntl, "F_OFD_SETLK", -1)
_REFUSED = {errno.EAGAIN, errno.EACCES}


class OfdLocks:
    """The locks that one open file has."""

    def __init__(self, path: str, *, perms: int = 0o640) -> None:
        """Opens the file. Raises OSError where there can be no such locks."""
        if not hasattr(fcntl, "F_OFD_SETLK"):
            raise OSError(errno.ENOTSUP, "the system has no locks of open files")
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, perms)
        try:
            # Some file systems say only now that they have none.
            self._other(0)
        except OSError:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        """Lets everything go."""
        # Not by a number that another file may have by then.
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)

    def take(self, upload_id: str, *, alone: bool) -> bool:
        """Has the upload's byte from now on, with others that do not want it alone; whether that came about.

        What was had before of it is kept otherwise. Raises OSError.
        """
        return self._set(_range(fcntl.F_WRLCK if alone else fcntl.F_RDLCK, _place(upload_id)))

    def let_go(self, upload_id: str) -> None:
        """Has the upload's byte no more."""
        self._set(_range(fcntl.F_UNLCK, _place(upload_id)))

    def change_byte(self, upload_id: str) -> ChangeByte:
        """The byte that is had during each change."""
        return ChangeByte(self, _CHANGE + _place(upload_id))

    def set_requested(self, upload_id: str, *, on: bool) -> None:
        """Tells other processes that somebody here waits and asks for the byte, or does no more."""
        self._set(_range(fcntl.F_RDLCK if on else fcntl.F_UNLCK, _ASKED + _place(upload_id)))

    def is_requested(self, upload_id: str) -> bool:
        """Whether somebody in another process waits and asks for the byte."""
        return self._other(_ASKED + _place(upload_id))

    def _set(self, lock: bytes) -> bool:
        """Does what a struct flock says, at once; whether that came about. Raises OSError."""
        if self.descriptor < 0:
            raise OSError(errno.EBADF, "the locks are closed")
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, lock)
        except OSError as problem:
            if problem.errno in _REFUSED:
                return False
            raise
        return True

    def _other(self, place: int) -> bool:
        """Whether another open file has that byte."""
        if self.descriptor < 0:
            raise OSError(errno.EBADF, "the locks are closed")
        answer = fcntl.fcntl(self.descriptor, fcntl.F_OFD_GETLK, _range(fcntl.F_WRLCK, place))
        kind: int = struct.unpack(_FLOCK, answer)[0]
        return kind != fcntl.F_UNLCK


class ChangeByte:
    """One byte that is had alone for short, with what the system is told of it made once."""

    __slots__ = ("_free", "_ranges", "_taken")

    def __init__(self, ranges: OfdLocks, place: int) -> None:
        self._ranges = ranges
        self._taken = _range(fcntl.F_WRLCK, place)
        self._free = _range(fcntl.F_UNLCK, place)

    def take(self) -> None:
        """Has it alone from now on. Raises BlockingIOError where another open file has it, OSError.

        Both raise ValueError once the file is closed.
        """
        _fcntl(self._ranges.descriptor, _SET, self._taken)

    def let_go(self) -> None:
        """Has it no more. Raises OSError."""
        _fcntl(self._ranges.descriptor, _SET, self._free)


def _range(kind: int, place: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, place, 1, 0)


def _place(upload_id: str) -> int:
    """Below 2^56: that two uploads meet is as good as impossible, and would cost one of them a wait."""
    return int.from_bytes(hashlib.blake2b(upload_id.encode(), digest_size=7).digest(), "big")
