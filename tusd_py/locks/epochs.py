"""Epochs of uploads: which holder's bytes in the range-lock file count.

An upload has a byte in that file for each of its epochs (`locks/ranges.py`), and whoever has the byte of the current epoch
holds the upload. The epoch is a random token in `epochs/<upload>`; an upload without such a file is in its first. A newcomer
that gives a holder up, because it stands still or is out of reach, writes a new token: what the holder has belongs to an
epoch that is over, and each of its changes is refused from then on, whenever it wakes up. Not for: when that may be done
(`locks/shared.py`).
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

FIRST = ""
"""The epoch of uploads whose holders were never given up."""

_TOKEN_BYTES = 16
_ABANDONED = 3600.0
"""Seconds after which a file that is not in its place yet was left by a crash."""
_MOST = 64


class Epochs:
    """The epochs of all uploads, in one directory.

    is_local: whether the directory lies on a disk of this machine. What other machines did to it over a network is seen only by
    opening it. perms: permission bits of the files.
    """

    def __init__(self, directory: str, *, is_local: bool, perms: int = 0o640) -> None:
        self._directory = directory
        self._is_local = is_local
        self._perms = perms

    def read(self, upload_id: str) -> str:
        """The current epoch of an upload. Raises OSError."""
        if self._is_local:
            path = self._path(upload_id)
            # Quicker than an exception where there is none, as nearly always.
            return self._content(path) if os.access(path, os.F_OK) else FIRST
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return self._content(_name(upload_id), directory)
        finally:
            os.close(directory)

    @staticmethod
    def _content(path: str, directory: int | None = None) -> str:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
        except FileNotFoundError:
            return FIRST
        try:
            # Never FIRST, whatever a power cut left of it.
            return "=" + os.read(descriptor, _MOST).decode("ascii", "replace")
        finally:
            os.close(descriptor)

    def is_current(self, upload_id: str, epoch: str) -> Callable[[], bool]:
        """What tells whether an epoch is still the current one, as quickly as can be. It raises OSError."""
        if epoch != FIRST or not self._is_local:
            return lambda: self.read(upload_id) == epoch
        path, access, exists = self._path(upload_id), os.access, os.F_OK
        return lambda: not access(path, exists)

    @staticmethod
    def new() -> str:
        """An epoch that no upload has had."""
        return "=" + secrets.token_hex(_TOKEN_BYTES)

    def write(self, upload_id: str, epoch: str) -> None:
        """Begin an epoch that `new` made, all or nothing. Raises OSError."""
        content = epoch[1:].encode()
        # No id begins with a dot.
        tmp = f"{self._directory}/.{epoch[1:]}"
        descriptor = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._perms)
        try:
            try:
                if os.write(descriptor, content) != len(content):
                    raise OSError(errno.ENOSPC, "the epoch was written in part")
            finally:
                os.close(descriptor)
            os.rename(tmp, self._path(upload_id))
        except OSError:
            with suppress(OSError):
                os.unlink(tmp)
            raise

    def forget(self, upload_id: str) -> None:
        """Let an upload be in its first epoch again. For one that is gone, and of whose bytes nobody has any."""
        with suppress(FileNotFoundError):
            os.unlink(self._path(upload_id))

    def ids(self) -> Iterator[str]:
        """The uploads that are in a later epoch than their first. Raises OSError."""
        for name in os.listdir(self._directory):
            if not name.startswith("."):
                yield name.replace("%", "/")

    def remove_remains(self) -> int:
        """Remove what crashes left of epochs that were never begun; how many. Raises OSError."""
        removed = 0
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if (
                        entry.name.startswith(".")
                        and time.time() - entry.stat().st_mtime > _ABANDONED
                    ):
                        os.unlink(entry.path)
                        removed += 1
        return removed

    def _path(self, upload_id: str) -> str:
        return f"{self._directory}/{_name(upload_id)}"


def _name(upload_id: str) -> str:
    """The id as one file name: `%` cannot stand in an id, so no two of them meet."""
    return upload_id.replace("/", "%")


def place_name(upload_id: str, epoch: str) -> str:
    """What the bytes of an upload in one of its epochs are called; in its first, as in versions without epochs."""
    return f"{upload_id}\0{epoch}" if epoch else upload_id
