"""Detection of bytes of unfinished uploads that a power cut replaced by zeros.

A data file's length may reach the disk without its last bytes, which then read as zeros. ext4 does that to bytes appended to a
block that was written before, and to blocks that were only reserved, which become holes. Neither can be distinguished from
zeros that a client sent. So if a file was last written to before the current session (since the file system was mounted or the
machine started), zeros at the end of its last block do not count, nor anything behind a hole. Before durable bytes that end in
a zero are acknowledged, their length is recorded as sound. Finished uploads are synced and not concerned.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from tusd_py.storage.file.mounts import mount_of

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SMALLEST_BLOCK = 4096


class Session:
    """The time since the file system was mounted, or since a server was first started after that.

    path: a symbolic link to an id of the mount, created when a server first saw it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.began_at = 0

    def open(self) -> None:
        """Find out when the session began. If the link cannot be read or written, it begins now."""
        try:
            present = f"{_BOOT_ID.read_text().strip()} {mount_of(os.path.dirname(self._path))}"
            if _read(self._path) != present:
                tmp = f"{self._path}.{os.getpid()}"
                with suppress(FileNotFoundError):
                    os.unlink(tmp)
                os.symlink(present, tmp)
                os.rename(tmp, self._path)
            self.began_at = os.lstat(self._path).st_mtime_ns
        except OSError:
            self.began_at = time.time_ns()

    def is_older(self, status: os.stat_result) -> bool:
        """Return whether a file was last written to before the session began."""
        return status.st_mtime_ns <= self.began_at


def _read(path: str) -> str:
    with suppress(FileNotFoundError):
        return os.readlink(path)
    return ""


def sound_length(path: str) -> int:
    """Return how many bytes of a data file count after a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if not status.st_size:
            return 0
        length = min(status.st_size, os.lseek(descriptor, 0, os.SEEK_HOLE))
        block = max(_SMALLEST_BLOCK, status.st_blksize)
        begin = max(0, length - 1) // block * block
        return begin + len(os.pread(descriptor, length - begin, begin).rstrip(b"\0"))
    finally:
        os.close(descriptor)
