"""What a power cut may have left of an unfinished upload that is not what was sent.

The length of a data file may be on the disk without its last bytes: they read as zeros. ext4 does that to bytes that were added
to a block which had been written before, and to blocks that it had only reserved, which are holes then. Neither can be told
from a client's zeros. So of a file that was last written to before the present session began, which is the time since the
file system was mounted or the machine was started, zeros do not count that lie at the end of its last block, nor anything
behind a hole. Whoever acknowledges durable bytes that end in a zero has them marked as sound before. Not for: finished uploads.
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
    """The time since the file system was mounted, as far as servers were started since.

    path: a symbolic link to what tells this mount from others, made when it was first seen.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.began_at = 0

    def open(self) -> None:
        """Find out when it began. A record that cannot be read or written means that it begins now."""
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
        """Whether a file was last written to before the session began."""
        return status.st_mtime_ns <= self.began_at


def _read(path: str) -> str:
    with suppress(FileNotFoundError):
        return os.readlink(path)
    return ""


def sound_length(path: str) -> int:
    """How many bytes of a data file count after a power cut. Raises OSError."""
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
