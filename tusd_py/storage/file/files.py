"""Small helpers for files: create, write, remove. Blocking calls."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress


def create_file(path: str, perms: int) -> int:
    """Create a file and return its descriptor, open for writing. Raises FileExistsError, OSError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, perms)


def write_all(descriptor: int, content: bytes) -> None:
    """Write `content` by one call. Raises OSError, also where only a part of it was written."""
    if os.write(descriptor, content) != len(content):
        raise OSError(errno.ENOSPC, "the file was written in part")


def unlink_if_exists(path: str) -> int:
    """Remove a file; returns 1 if it existed, else 0. Raises OSError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return 0
    return 1


def exists(path: str) -> bool:
    """Whether something has this path, a link that leads nowhere included. Raises OSError where that cannot be told.

    Unlike `os.access` and `os.path.exists`, which take every error for absence.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_surely_absent(root: str, path: str) -> bool:
    """Whether nothing is at `root`/`path`, for certain. Raises OSError where that cannot be told.

    A directory on the way that is empty, or a link that leads nowhere, may be the place of a volume that is not mounted.
    """
    if exists(f"{root}/{path}"):
        return False
    directory = os.path.dirname(path)
    while directory:
        place = f"{root}/{directory}"
        with suppress(FileNotFoundError, NotADirectoryError):
            kind = os.lstat(place).st_mode
            return not stat.S_ISLNK(kind) and (not stat.S_ISDIR(kind) or bool(os.listdir(place)))
        directory = os.path.dirname(directory)
    return True
