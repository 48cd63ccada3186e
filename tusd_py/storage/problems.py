"""What the errors of the operating system mean to those who use a store."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from tusd_py.storage.base import StorageError, StorageFull

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turns an OSError into the StorageError that it means; `what` says for the log what was being done."""
    try:
        yield
    except OSError as problem:
        kind = StorageFull if problem.errno in _NO_ROOM else StorageError
        raise kind(f"{what}: {problem}") from problem
