"""What the errors of the operating system mean to those who use a store."""

from __future__ import annotations

import errno
from types import TracebackType

from tusd_py.storage.base import BytesNotKept, StorageError, StorageFull
from tusd_py.storage.file.fsync import BytesLost

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TAKES_NOTHING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def takes_nothing(problem: OSError) -> bool:
    """Whether a write failed as the disk is full, a quota used up, or the file system read-only: what is there can be read."""
    return problem.errno in _TAKES_NOTHING


class translated:
    """`with translated(what):` turns an OSError into the StorageError that it means; what: was being done, for the log.

    A class, as every request passes several of them, and a generator takes three times as long.
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
    # First: that a disk was full when it wrote out what it had taken does not mean that what it had taken is kept.
    if isinstance(problem, BytesLost):
        return BytesNotKept
    return StorageFull if problem.errno in _NO_ROOM else StorageError
