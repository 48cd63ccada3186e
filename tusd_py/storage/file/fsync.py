"""Syncing of files, with group commit where that is cheaper.

A sync waits for the disk, and most of that wait is shared by all. So requests that arrive during other syncs are collected, and
one `syncfs` makes all of them durable; a few are synced one by one, in parallel. `syncfs` is used only on local file systems
whose kernel reports its errors (Linux 5.8 or newer); elsewhere each file is synced by itself. `syncfs` reports an error once,
whichever file it concerns, so each file of a group is checked for its own errors once it reported one. Before, that is needed
only for files that other processes wrote. The order of syncs is up to the store.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache

from tusd_py.storage.file.files import opened
from tusd_py.storage.file.mounts import is_local
from tusd_py.storage.file.threads import until_done

logger = logging.getLogger(__name__)

_GROUP_SIZE = 3
"""Number of waiting requests from which they are synced together."""
_MAX_PARALLEL = 2
"""Number of requests that are synced one by one at a time."""
_KNOWN_SECONDS = 1.0
"""Time for which it is cached whether a directory lies on the root's file system."""
_MOST_KNOWN = 1024
_START_WRITING = 2
"""SYNC_FILE_RANGE_WRITE of sync_file_range(2)."""
_WAIT_BEFORE = 1
"""SYNC_FILE_RANGE_WAIT_BEFORE: waits for running writes, starts none, and reports errors."""
_CANNOT_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
"""Errors of file systems that cannot sync a directory (CIFS, some FUSE)."""

# macOS has no fdatasync.
sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


class BytesLost(OSError):
    """The bytes of a file could not be made durable: the kernel may have dropped them, and reports that only once."""


class FileLost(OSError):
    """The bytes of a record or an event could not be made durable; those of the upload stay, and the file is written anew."""


@dataclass(slots=True, eq=False)
class _SyncRequest:
    """A request to make paths durable; see `GroupSync.sync`. done: resolved with the error, or None."""

    data: str | None
    files: Sequence[str]
    directories: Sequence[str]
    whole: bool
    own: bool
    done: asyncio.Future[OSError | None] = field(init=False)

    def __post_init__(self) -> None:
        self.done = asyncio.get_running_loop().create_future()


class GroupSync:
    """Syncs files under `root`, in threads of `threads`. Its methods are for the event loop.

    on_loss: called in a thread when the kernel reports lost bytes of any file.
    """

    def __init__(
        self, root: str, threads: Executor, *, on_loss: Callable[[], None] = lambda: None
    ) -> None:
        self._on_loss = on_loss
        self._root = root
        self._threads = threads
        self._whole = -1
        self._device = -1
        self._known: dict[str, tuple[float, bool]] = {}
        self._waiting: list[_SyncRequest] = []
        self._running = 0
        self._grouped = False
        self._has_lost = False

    def open(self) -> None:
        """Find out whether the file system can be synced as a whole. Raises OSError."""
        if _syncs_whole(self._root):
            # Kept open, as it reports the errors since it was opened.
            self._whole = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._device = os.fstat(self._whole).st_dev

    def close(self) -> None:
        if self._whole >= 0:
            os.close(self._whole)
            self._whole = -1

    async def sync(
        self,
        data: str | None,
        *files: str,
        directories: Sequence[str] = (),
        whole: bool = False,
        own: bool = False,
    ) -> None:
        """Make the bytes of the file `data`, and other files and directories, durable.

        Args:
            data: Path of a file of which only the bytes matter.
            files: Paths of files.
            directories: Paths of directories, synced after the files.
            whole: Also detect losses of any file since the server started, if possible.
            own: This process wrote all that matters of these files.

        Raises:
            BytesLost: Bytes of `data` may be lost.
            OSError: Anything else failed; the bytes are as they were.
        """
        request = _SyncRequest(data, files, directories, whole, own)
        self._waiting.append(request)
        self._start_waiting()
        if (problem := await until_done(request.done)) is not None:
            raise problem

    def _start_waiting(self) -> None:
        """Start as many waiting requests as possible."""
        if not self._waiting or self._grouped:
            return
        if self._whole >= 0 and (
            len(self._waiting) >= _GROUP_SIZE or any(request.whole for request in self._waiting)
        ):
            group, self._waiting = self._waiting, []
            self._grouped = True
            self._begin(self._sync_group, group)
            return
        while self._waiting and self._running < _MAX_PARALLEL:
            self._begin(self._sync_each, [self._waiting.pop(0)])

    def _begin(
        self,
        how: Callable[[Sequence[_SyncRequest]], list[OSError | None]],
        requests: Sequence[_SyncRequest],
    ) -> None:
        self._running += 1
        work = asyncio.get_running_loop().run_in_executor(self._threads, how, requests)

        def end(done: asyncio.Future[list[OSError | None]]) -> None:
            self._running -= 1
            if how == self._sync_group:
                self._grouped = False
            failed = None if done.cancelled() else done.exception()
            if done.cancelled() or failed is not None:
                reason = repr(failed) if failed is not None else "the server is stopping"
                results: list[OSError | None] = [OSError(reason)] * len(requests)
            else:
                results = done.result()
            for request, problem in zip(requests, results, strict=True):
                request.done.set_result(problem)
            self._start_waiting()

        work.add_done_callback(end)

    def _sync_group(self, requests: Sequence[_SyncRequest]) -> list[OSError | None]:
        try:
            _call(_syncfs, self._whole)
        except OSError:
            # It does not say which files lost bytes, and the error is not reported again.
            self._has_lost = True
            self._on_loss()
            return [_sync_alone(request) for request in requests]
        results = list(map(self._after_group, requests))
        # Not if a file is gone, or descriptors are used up.
        if any(isinstance(each, BytesLost | FileLost) for each in results):
            self._record_loss()
        return results

    def _after_group(self, request: _SyncRequest) -> OSError | None:
        """The error of a request after a sync of the whole file system."""
        if not self._is_covered(request):
            return _sync_alone(request)
        if request.own and not self._has_lost:
            # `syncfs` would have reported every loss since this process started.
            return None
        return _loss_of(request)

    def _is_covered(self, request: _SyncRequest) -> bool:
        """Whether all of it lies on the file system of the root: a directory below may be another volume."""
        files = (*request.files, request.data) if request.data is not None else request.files
        directories = {os.path.dirname(path) for path in files}
        return all(map(self._is_below, directories.union(request.directories)))

    def _is_below(self, directory: str) -> bool:
        now = time.monotonic()
        known = self._known.get(directory)
        if known is not None and now - known[0] < _KNOWN_SECONDS:
            return known[1]
        try:
            is_below = os.stat(directory).st_dev == self._device
        except OSError:
            # Syncing its files by themselves raises the reason.
            return False
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[directory] = now, is_below
        return is_below

    def _sync_each(self, requests: Sequence[_SyncRequest]) -> list[OSError | None]:
        results = [_sync_alone(request) for request in requests]
        if any(isinstance(result, BytesLost) for result in results):
            self._record_loss()
        return results

    def _record_loss(self) -> None:
        """Record that a file lost bytes; others may have, in the same write-back."""
        # First: `syncfs` below takes the error, so that a group that runs now is not told of it.
        self._has_lost = True
        if self._whole >= 0:
            # So that the same error is not reported to the next group.
            with suppress(OSError):
                _call(_syncfs, self._whole)
        self._on_loss()


def _loss_of(request: _SyncRequest) -> OSError | None:
    """Return the write-back error of a file, or of one that is synced with it, after a sync of the whole file system."""
    try:
        if request.data is not None:
            _report_loss(request.data)
    except OSError as problem:
        return problem
    try:
        for path in request.files:
            _report_loss(path)
    except FileNotFoundError:
        return None
    except BytesLost as problem:
        return FileLost(problem.errno, problem.strerror)
    except OSError as problem:
        return problem
    return None


def _report_loss(path: str) -> None:
    """Raise BytesLost if the file has an unreported write-back error. Does not wait for the disk."""
    with opened(path, os.O_RDONLY) as descriptor:
        report_loss(descriptor)


def report_loss(descriptor: int) -> None:
    """Raise BytesLost if an open file has a write-back error since it was opened, or an earlier unreported one."""
    if _sync_file_range is None:
        return
    everything = ctypes.c_int64(0)
    try:
        _call(_sync_file_range, descriptor, everything, everything, ctypes.c_uint(_WAIT_BEFORE))
    except OSError as problem:
        raise BytesLost(problem.errno, problem.strerror) from problem


def _sync_alone(request: _SyncRequest) -> OSError | None:
    try:
        if request.data is not None:
            sync_path(request.data, data_only=True)
        for path in (*request.files, *request.directories):
            sync_path(path)
    except OSError as problem:
        return problem
    return None


def sync_bytes(descriptor: int) -> None:
    """Make the bytes of an open file durable, and the metadata needed to read them. Raises BytesLost."""
    try:
        sync_data(descriptor)
    except OSError as problem:
        raise BytesLost(problem.errno, problem.strerror) from problem


def sync_path(path: str, *, data_only: bool = False) -> None:
    """Make a file or directory durable; with data_only, only a file's bytes. Raises OSError."""
    with opened(path, os.O_RDONLY) as descriptor:
        if data_only:
            sync_bytes(descriptor)
        else:
            _sync_entry(descriptor, path)


def _sync_entry(descriptor: int, path: str) -> None:
    """Sync a file, or a directory if that can be synced. Raises OSError."""
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno not in _CANNOT_SYNC or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
        _warn_once(problem.errno, os.stat(path).st_dev)


@cache
def _warn_once(number: int, device: int) -> None:
    logger.warning(
        "directories cannot be synced on this file system (%s): the names of finished uploads may not survive a power cut; "
        "their bytes are synced",
        os.strerror(number),
    )


def start_writing(descriptor: int, offset: int, count: int) -> None:
    """Start the write-back of these bytes, so that a later sync is shorter. May block while the disk's queue is full."""
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
        raise OSError("the system lacks this call")
    if function(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _syncs_whole(path: str) -> bool:
    """Return whether `syncfs` exists, reports errors, and is safe to use at this path."""
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if _syncfs is None or os.uname().sysname != "Linux" or version is None:
        return False
    if (int(version[1]), int(version[2])) < (5, 8):
        return False
    return is_local(path)
