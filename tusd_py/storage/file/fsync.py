"""Making files durable, those of many uploads at a time where that is cheaper.

One sync costs a wait for the disk, and most of it is the same wait for all. So those that come while others are being synced
wait for each other, and one `syncfs` then makes all of them durable; a few are synced one by one, side by side. Only for file
systems of this machine of which it is known that `syncfs` says what went wrong (Linux 5.8 or newer); elsewhere each file is
synced by itself. `syncfs` reports an error once, whichever files it concerns, so each file of a group is asked for its own.
Not for: what must be durable before what, which is for the store to say.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache

from tusd_py.storage.file.mounts import is_local

logger = logging.getLogger(__name__)

_GROUP = 3
"""So many that wait are synced together."""
_SIDE_BY_SIDE = 2
"""So many are synced one by one at a time, before others have to wait."""
_START_WRITING = 2
"""SYNC_FILE_RANGE_WRITE of sync_file_range(2)."""
_WAIT_BEFORE = 1
"""SYNC_FILE_RANGE_WAIT_BEFORE: waits for what is being written, begins with nothing, and reports what went wrong."""
_CANNOT_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What file systems answer that have no sync for a directory (CIFS, some FUSE)."""

# macOS has no fdatasync.
sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


class BytesLost(OSError):
    """The bytes of a file could not be made durable: the system may have thrown them away, and says so only once."""


@dataclass(slots=True, eq=False)
class _Wish:
    """Paths that somebody waits for to be durable. whole: by a sync of the file system, where that is to be had.

    done: resolved with what went wrong, None if nothing did.
    """

    data: str | None
    others: Sequence[str]
    whole: bool
    done: asyncio.Future[OSError | None] = field(init=False)

    def __post_init__(self) -> None:
        self.done = asyncio.get_running_loop().create_future()


class GroupSync:
    """Syncs what lies under `root`, in threads of `threads`; its methods are for the event loop.

    on_loss: called in a thread when it is reported that bytes were lost, of whichever files.
    """

    def __init__(
        self, root: str, threads: Executor, *, on_loss: Callable[[], None] = lambda: None
    ) -> None:
        self._on_loss = on_loss
        self._root = root
        self._threads = threads
        self._whole = -1
        self._waiting: list[_Wish] = []
        self._running = 0
        self._grouped = False

    def open(self) -> None:
        """Finds out what the file system can do. Raises OSError."""
        if _syncs_whole(self._root):
            # One descriptor for good: what went wrong since it was opened is reported to it.
            self._whole = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        if self._whole >= 0:
            os.close(self._whole)
            self._whole = -1

    async def sync(self, data: str | None, *others: str, whole: bool = False) -> None:
        """Returns when the bytes of the file `data`, and the files and directories `others`, are durable.

        whole: what may have been lost of other files since the server started is found out, too, where that can be done.
        Raises BytesLost if it was the bytes, OSError for all else; then they are as they were.
        """
        wish = _Wish(data, others, whole)
        self._waiting.append(wish)
        self._go_on()
        # Shielded: whoever waits must not go on while a thread still syncs for it.
        try:
            problem = await asyncio.shield(wish.done)
        except asyncio.CancelledError:
            await asyncio.wait([wish.done])
            raise
        if problem is not None:
            raise problem

    def _go_on(self) -> None:
        """Begins with as many as may be begun with now."""
        if not self._waiting or self._grouped:
            return
        if self._whole >= 0 and (
            len(self._waiting) >= _GROUP or any(wish.whole for wish in self._waiting)
        ):
            group, self._waiting = self._waiting, []
            self._grouped = True
            self._begin(self._sync_group, group)
            return
        while self._waiting and self._running < _SIDE_BY_SIDE:
            self._begin(self._sync_each, [self._waiting.pop(0)])

    def _begin(
        self,
        how: Callable[[Sequence[_Wish]], list[OSError | None]],
        wishes: Sequence[_Wish],
    ) -> None:
        self._running += 1
        work = asyncio.get_running_loop().run_in_executor(self._threads, how, wishes)

        def end(done: asyncio.Future[list[OSError | None]]) -> None:
            self._running -= 1
            if how == self._sync_group:
                self._grouped = False
            failed = None if done.cancelled() else done.exception()
            if done.cancelled() or failed is not None:
                reason = repr(failed) if failed is not None else "the server is stopping"
                results: list[OSError | None] = [OSError(reason)] * len(wishes)
            else:
                results = done.result()
            for wish, problem in zip(wishes, results, strict=True):
                wish.done.set_result(problem)
            self._go_on()

        work.add_done_callback(end)

    def _sync_group(self, wishes: Sequence[_Wish]) -> list[OSError | None]:
        try:
            _call(_syncfs, self._whole)
        except OSError:
            # It does not say which files lost bytes, and nobody will be told again.
            self._on_loss()
            return [_sync_alone(wish) for wish in wishes]
        results = [_loss_of(wish) for wish in wishes]
        if any(results):
            self._note_loss()
        return results

    def _sync_each(self, wishes: Sequence[_Wish]) -> list[OSError | None]:
        results = [_sync_alone(wish) for wish in wishes]
        if any(isinstance(result, BytesLost) for result in results):
            self._note_loss()
        return results

    def _note_loss(self) -> None:
        """A file has lost bytes; others may have, in the same write-back."""
        if self._whole >= 0:
            # So that the next group is not told of it as of something new.
            with suppress(OSError):
                _call(_syncfs, self._whole)
        self._on_loss()


def _loss_of(wish: _Wish) -> OSError | None:
    """What a file was to be told of its own bytes, after they were written out."""
    try:
        if wish.data is not None:
            _report_loss(wish.data)
    except OSError as problem:
        return problem
    return None


def _report_loss(path: str) -> None:
    """Raises BytesLost if bytes of a file were lost, as far as nobody was told. Costs no wait for the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        report_loss(descriptor)
    finally:
        os.close(descriptor)


def report_loss(descriptor: int) -> None:
    """Raises BytesLost if bytes of an open file were lost since it was opened, or before that and nobody was told."""
    if _sync_file_range is None:
        return
    everything = ctypes.c_int64(0)
    try:
        _call(_sync_file_range, descriptor, everything, everything, ctypes.c_uint(_WAIT_BEFORE))
    except OSError as problem:
        raise BytesLost(problem.errno, problem.strerror) from problem


def _sync_alone(wish: _Wish) -> OSError | None:
    try:
        if wish.data is not None:
            sync_path(wish.data, data_only=True)
        for path in wish.others:
            sync_path(path)
    except OSError as problem:
        return problem
    return None


def sync_bytes(descriptor: int) -> None:
    """Makes the bytes of an open file durable, and what is needed to read them. Raises BytesLost."""
    try:
        sync_data(descriptor)
    except OSError as problem:
        raise BytesLost(problem.errno, problem.strerror) from problem


def sync_path(path: str, *, data_only: bool = False) -> None:
    """Makes a file or directory durable; with data_only, of a file what is needed to read its bytes. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if data_only:
            sync_bytes(descriptor)
        else:
            _sync_entry(descriptor, path)
    finally:
        os.close(descriptor)


def _sync_entry(descriptor: int, path: str) -> None:
    """Syncs a file, or a directory if it can be synced. Raises OSError."""
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno not in _CANNOT_SYNC or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
        _say_that_directories_cannot_be_synced(path, problem.errno)


@cache
def _say_once(number: int, device: int) -> None:
    logger.warning(
        "directories cannot be synced on this file system (%s): whether the names of finished uploads outlast a power cut is "
        "up to it; their bytes are synced",
        os.strerror(number),
    )


def _say_that_directories_cannot_be_synced(path: str, number: int) -> None:
    _say_once(number, os.stat(path).st_dev)


def start_writing(descriptor: int, offset: int, count: int) -> None:
    """Lets the disk begin with these bytes, so that a later sync has less to wait for. It promises nothing, and may wait for
    the disk's queue."""
    if _sync_file_range is not None:
        _sync_file_range(
            descriptor, ctypes.c_int64(offset), ctypes.c_int64(count), ctypes.c_uint(_START_WRITING)
        )


def _function(name: str) -> Callable[..., int] | None:
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    return function


_syncfs = _function("syncfs")
_sync_file_range = _function("sync_file_range")


def _call(function: Callable[..., int] | None, *args: object) -> None:
    if function is None:
        raise OSError("the system lacks a function")
    if function(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _syncs_whole(path: str) -> bool:
    """Whether `syncfs` is to be had here, and does what it has to."""
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if _syncfs is None or os.uname().sysname != "Linux" or version is None:
        return False
    if (int(version[1]), int(version[2])) < (5, 8):
        return False
    return is_local(path)
