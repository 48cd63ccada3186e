"""Translation of operating system errors into the errors of a store."""

from __future__ import annotations

import errno
from types import TracebackType

from tusd_py.storage.base import BytesNotKept, ResourcesExhausted, StorageError, StorageFull
from tusd_py.storage.file.fsync import BytesLost

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TAKES_NOTHING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def is_exhausted(problem: OSError) -> bool:
    """Return whether a call failed because the process or the system has no file descriptor or memory left."""
    return problem.errno in _EXHAUSTED


def takes_nothing(problem: OSError) -> bool:
    """Return whether a write failed because the disk is full, a quota is used up or the file system is read-only."""
    return problem.errno in _TAKES_NOTHING


class translated:
    """`with translated(what):` raises an OSError as the StorageError that it means. what: the operation, for the log.

    A class, because every request uses several of them and a generator takes three times as long.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        problem: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if isinstance(problem, OSError):
            raise _meaning(problem)(f"{self._what}: {problem}") from problem


def _meaning(problem: OSError) -> type[StorageError]:
    # First: a disk that was full during write-back has lost bytes that it had accepted.
    if isinstance(problem, BytesLost):
        return BytesNotKept
    if is_exhausted(problem):
        return ResourcesExhausted
    return StorageFull if problem.errno in _NO_ROOM else StorageError
