"""A hook file that has system calls of its server fail with EIO when the page of the process says so.

Only calls on files of the upload directory fail: writes of bytes and records, and what makes them durable.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.support.clock import followed
from tests.support.control import Failing
from tusd_py.storage.file import fsync

_page = followed()
_real_pwrite, _real_write, _real_fsync = os.pwrite, os.write, os.fsync
_real_sync: Callable[[int], None] = fsync.sync_data
_MARK = os.environ["SOAK_UPLOADS"]


def _check(call: Failing, descriptor: int) -> None:
    if (
        _page is not None
        and _page.is_to_fail(call)
        and os.readlink(f"/proc/self/fd/{descriptor}").startswith(_MARK)
    ):
        _page.check(call)


def _pwrite(descriptor: int, data: bytes, offset: int) -> int:
    _check("write", descriptor)
    return _real_pwrite(descriptor, data, offset)


def _write(descriptor: int, data: bytes) -> int:
    _check("write", descriptor)
    return _real_write(descriptor, data)


def _fsync(descriptor: int) -> None:
    _check("sync", descriptor)
    _real_fsync(descriptor)


def _sync(descriptor: int) -> None:
    _check("sync", descriptor)
    _real_sync(descriptor)


os.pwrite, os.write, os.fsync, fsync.sync_data = _pwrite, _write, _fsync, _sync  # type: ignore[assignment]


def create_failed(_event: object) -> None:
    """Do nothing: a file of hooks has to have one."""
