"""Small helpers for files: open, create, read, write, remove. Blocking calls."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress


class opened:
    """`with opened(path, flags) as descriptor:` opens a file, not to be inherited by child processes, and closes it.

    A class, as requests use it and a generator takes three times as long. perms: of a new file. Raises OSError.
    """

    __slots__ = ("_descriptor",)

    def __init__(self, path: str, flags: int, perms: int = 0o640) -> None:
        self._descriptor = os.open(path, flags | os.O_CLOEXEC, perms)

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *_error: object) -> None:
        os.close(self._descriptor)


def create_file(path: str, perms: int) -> int:
    """Create a file and return its descriptor, open for writing. Raises FileExistsError, OSError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, perms)


def write_all(descriptor: int, content: bytes) -> None:
    """Write `content` by one call. Raises OSError, also where only a part of it was written."""
    if os.write(descriptor, content) != len(content):
        raise OSError(errno.ENOSPC, "the file was written in part")


def write_new(
    path: str, content: bytes, *, perms: int = 0o640, sync: bool = False
) -> os.stat_result:
    """Write a new file and return its status; removes it again if its content cannot be written. Raises OSError."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, perms) as descriptor:
        try:
            write_all(descriptor, content)
            if sync:
                os.fsync(descriptor)
            return os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.unlink(path)
            raise


def link_or_content(path: str, most: int) -> bytes:
    """The target of a symbolic link, or the first bytes of a file, at most so many. Raises OSError."""
    try:
        return os.readlink(os.fsencode(path))
    except OSError as problem:
        if problem.errno != errno.EINVAL:
            raise
    # Without O_NONBLOCK, opening a pipe would wait for a writer; files ignore it.
    with opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as descriptor:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is neither a link nor a file", path)
        return os.read(descriptor, most)


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
