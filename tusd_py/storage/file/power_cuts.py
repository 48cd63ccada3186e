"""Detection of bytes of unfinished uploads that a power cut replaced by zeros.

A data file's length may reach the disk without its last bytes, which then read as zeros. ext4 does that to bytes appended to a
block that was written before, and to blocks that were only reserved, which become holes. Neither can be distinguished from
zeros that a client sent. So if a file was last written to before the current session (since the file system was mounted or the
machine started), zeros at the end of its last block do not count, nor anything behind a hole. Before durable bytes that end in
a zero are acknowledged, their length is recorded as sound. Finished uploads are synced and not concerned, nor are those that
this process has written to: clocks may be set back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tusd_py.storage.file.files import opened
from tusd_py.storage.file.mounts import mount_of

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SMALLEST_BLOCK = 4096
_TOLERANCE_NS = 1_000_000_000
"""Between the clocks of the file system and of the process."""


class Session:
    """The time since the file system was mounted, or since a server was first started after that.

    path: a symbolic link to an id of the mount, created when a server first saw it.
    """

    def __init__(self, path: str, new_path: Callable[[str], str]) -> None:
        self._path = path
        self._new_path = new_path
        self.began_at = 0

    def open(self) -> None:
        """Find out when the session began. If the link cannot be read or written, it begins now."""
        now = time.time_ns()
        try:
            boot, mount = _BOOT_ID.read_text().strip(), mount_of(os.path.dirname(self._path))
            recorded, began_at = _read(self._path)
            if recorded != f"{boot} {mount}" or began_at > now:
                # Earlier versions recorded the number of the mount.
                *before, number = recorded.split() or [""]
                is_same = before == [boot, mount.split()[0]] and number.isdecimal()
                self._record(f"{boot} {mount}", min(began_at, now) if is_same else now)
            self.began_at = os.lstat(self._path).st_mtime_ns
        except OSError:
            self.began_at = now

    def _record(self, mount: str, began_at: int) -> None:
        tmp = self._new_path("session")
        os.symlink(mount, tmp)
        os.utime(tmp, ns=(began_at, began_at), follow_symlinks=False)
        os.rename(tmp, self._path)

    def is_older(self, status: os.stat_result) -> bool:
        """Return whether a file was last written to before the session began, or at a time that has not come yet."""
        now = time.time_ns()
        # The clock was set back since.
        self.began_at = min(self.began_at, now)
        return not self.began_at < status.st_mtime_ns <= now + _TOLERANCE_NS


def _read(path: str) -> tuple[str, int]:
    """Return what a link leads to and its mtime; nothing and 0 if there is none. Raises OSError."""
    with suppress(FileNotFoundError):
        return os.readlink(path), os.lstat(path).st_mtime_ns
    return "", 0


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
