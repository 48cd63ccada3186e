"""Detection of bytes of unfinished uploads that a power cut replaced by zeros.

A data file's length may reach the disk without its last bytes, which then read as zeros. ext4 does that to bytes appended to a
block that was written before, and to blocks that were only reserved, which become holes. Neither can be distinguished from
zeros that a client sent. So if a file was not written to in the current session (since the file system was mounted or the
machine started), zeros at the end of its last block do not count, nor anything behind a hole. Before durable bytes that end in
a zero are acknowledged, their length is recorded as sound. Finished uploads are synced and not concerned.

Times do not tell what was written to in this session, as clocks are set. An unfinished upload that was has the number of the
session in `.tusd-py/in-session`; without one, its bytes do not end in a zero. Only in a session in which an earlier version may
have written, which makes no such marks, times are compared for uploads without one.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tusd_py.storage.file.files import opened
from tusd_py.storage.file.mounts import UNKNOWN, mount_of

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SMALLEST_BLOCK = 4096
_BY_MARKS, _BY_TIMES = "marks", "times"
"""How to tell what was written to in a session."""


class Session:
    """The time since the file system was mounted, or since a server was first started after that.

    path: a symbolic link to the ids of the boot, the device and the mount, and how to tell what was written to since; created
    when a server first saw the mount.

    Attributes:
        number: Of this session, the same for all processes.
    """

    def __init__(self, path: str, new_path: Callable[[str], str]) -> None:
        self._path = path
        self._new_path = new_path
        self._earlier_until: int | None = None
        self.number = 0

    def open(self) -> None:
        """Find out which session this is. If the link cannot be read or written, it begins now."""
        try:
            boot = _BOOT_ID.read_text().strip()
            present = f"{boot} {mount_of(os.path.dirname(self._path))}"
            recorded = _read(self._path)
            if not recorded:
                # What version 0.1.0 has written since the machine started has no marks, and servers of it may run beside.
                recorded = f"{present} {_BY_TIMES}"
                self._record(recorded, time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME))
            elif not _is_same(recorded, present):
                recorded = f"{present} {_BY_MARKS}"
                self._record(recorded, time.time_ns())
            *_, kind = recorded.split()
            self._earlier_until = os.lstat(self._path).st_mtime_ns if kind == _BY_TIMES else None
            self.number = _number(recorded)
        except OSError:
            # Without marks that other processes understand, what is written to from now on is told by its time.
            self.number = self._earlier_until = time.time_ns()

    def _record(self, mount: str, began_at: int) -> None:
        tmp = self._new_path("session")
        os.symlink(mount, tmp)
        os.utime(tmp, ns=(began_at, began_at), follow_symlinks=False)
        os.rename(tmp, self._path)

    def is_older(self, status: os.stat_result) -> bool:
        """Return whether a file without a mark was last written to before this session."""
        return self._earlier_until is None or status.st_mtime_ns <= self._earlier_until


def _is_same(recorded: str, present: str) -> bool:
    """Return whether a recorded session is the present one: the mount of either may be unknown."""
    *before, mount = recorded.split()[:3] or [""]
    *now, known = present.split()
    return before == now and (mount in (known, UNKNOWN) or known == UNKNOWN)


def _number(recorded: str) -> int:
    return int.from_bytes(hashlib.sha256(recorded.encode()).digest()[:7])


def _read(path: str) -> str:
    with suppress(FileNotFoundError):
        return os.readlink(path)
    return ""


def sound_length(path: str) -> int:
    """Return how many bytes of a data file count after a power cut. Raises OSError."""
    with opened(path, os.O_RDONLY | os.O_NOFOLLOW) as descriptor:
        status = os.fstat(descriptor)
        if not status.st_size:
            return 0
        length = min(status.st_size, os.lseek(descriptor, 0, os.SEEK_HOLE))
        block = max(_SMALLEST_BLOCK, status.st_blksize)
        begin = max(0, length - 1) // block * block
        return begin + len(os.pread(descriptor, length - begin, begin).rstrip(b"\0"))
