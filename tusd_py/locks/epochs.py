"""Epochs of uploads: which holder's byte in the range-lock file counts.

An upload has a byte in that file for each of its epochs (`locks/ofd.py`), and the owner of the current epoch's byte holds the
upload. The epoch is a random token in `epochs/<upload>`; an upload without such a file is in its first. A request that takes
over from a hanging or unreachable holder writes a new token: the old holder's byte then belongs to a past epoch, and each of
its changes is refused, whenever it wakes up. `locks/fallback.py` decides when to take over.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

FIRST = ""
"""The epoch of uploads that were never taken over."""

_TOKEN_BYTES = 16
_ABANDONED_SECONDS = 3600.0
"""Age at which a temporary file is taken for the remains of a crash."""
_MAX_BYTES = 64
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class Epochs:
    """The epochs of all uploads, in one directory.

    is_local: whether the directory lies on a disk of this machine; on a network file system only opening it shows changes of
    other machines. perms: permission bits of the files.
    """

    def __init__(self, directory: str, *, is_local: bool, perms: int = 0o640) -> None:
        self._directory = directory
        self._is_local = is_local
        self._perms = perms

    def read(self, upload_id: str) -> str:
        """Return the current epoch of an upload. Raises OSError."""
        if self._is_local:
            return self._content(self._path(upload_id))
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return self._content(_name(upload_id), directory)
        finally:
            os.close(directory)

    @staticmethod
    def _content(path: str, directory: int | None = None) -> str:
        try:
            # Not to wait for ever for a pipe's other end.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags, dir_fd=directory)
        except FileNotFoundError:
            return FIRST
        except OSError as problem:
            if problem.errno != errno.ELOOP:
                raise
            return "=" + os.readlink(path, dir_fd=directory)
        try:
            # Differs from FIRST even if a power cut left the file empty.
            return "=" + os.read(descriptor, _MAX_BYTES).decode("ascii", "replace")
        finally:
            os.close(descriptor)

    def is_current(self, upload_id: str, epoch: str) -> Callable[[], bool]:
        """Return a fast function that returns whether an epoch is still the current one. It raises OSError."""
        if epoch != FIRST or not self._is_local:
            return lambda: self.read(upload_id) == epoch
        path, status_of = self._path(upload_id), os.lstat

        def is_first() -> bool:
            try:
                status_of(path)
            except FileNotFoundError:
                return True
            return False

        return is_first

    @staticmethod
    def new() -> str:
        """Return an epoch that no upload has had."""
        return "=" + secrets.token_hex(_TOKEN_BYTES)

    def write(self, upload_id: str, epoch: str) -> None:
        """Start an epoch that `new` made, atomically. Raises OSError."""
        # No id begins with a dot.
        tmp = f"{self._directory}/.{epoch[1:]}"
        try:
            self._make(tmp, epoch[1:])
            os.rename(tmp, self._path(upload_id))
        except OSError:
            with suppress(OSError):
                os.unlink(tmp)
            raise

    def _make(self, path: str, token: str) -> None:
        """Create a file with the token; on a full disk a symbolic link, which takes no space for its content."""
        content = token.encode()
        try:
            descriptor = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._perms
            )
            try:
                if os.write(descriptor, content) != len(content):
                    raise OSError(errno.ENOSPC, "the epoch was written in part")
            finally:
                os.close(descriptor)
        except OSError as problem:
            if problem.errno not in _NO_ROOM:
                raise
            with suppress(FileNotFoundError):
                os.unlink(path)
            os.symlink(token, path)

    def forget(self, upload_id: str) -> None:
        """Return an upload to its first epoch. Only for one that is gone and whose bytes no process holds."""
        with suppress(FileNotFoundError):
            os.unlink(self._path(upload_id))

    def ids(self) -> Iterator[str]:
        """Yield the uploads that are not in their first epoch. Raises OSError."""
        for name in os.listdir(self._directory):
            if not name.startswith("."):
                yield name.replace("%", "/")

    def remove_abandoned(self) -> int:
        """Remove temporary files that crashes left; returns how many. Raises OSError."""
        removed = 0
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if (
                        entry.name.startswith(".")
                        and time.time() - entry.stat(follow_symlinks=False).st_mtime
                        > _ABANDONED_SECONDS
                    ):
                        os.unlink(entry.path)
                        removed += 1
        return removed

    def _path(self, upload_id: str) -> str:
        return f"{self._directory}/{_name(upload_id)}"


def _name(upload_id: str) -> str:
    """The id as one file name. Ids contain no `%`, so two of them never collide."""
    return upload_id.replace("/", "%")


def range_name(upload_id: str, epoch: str) -> str:
    """Name an upload's bytes in the lock file for an epoch; in the first, as in versions without epochs."""
    return f"{upload_id}\0{epoch}" if epoch else upload_id
