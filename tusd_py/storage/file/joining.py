"""Joins of files, in threads of their own and in short turns.

However many joins there are, and however large: they take no thread from syncs, removals and checks, and a small one does not
wait for the end of a large one. Not for: which files are joined, and when.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from tusd_py.storage.base import StorageError, UploadNotFound
from tusd_py.storage.file.copying import copy_some
from tusd_py.storage.file.executor import Threads
from tusd_py.storage.file.fsync import sync_data

_THREADS = 2
_TURN_SECONDS = 0.05
"""Seconds after which a join lets others go on. One step of it may take longer on a slow disk."""
_STEP = 16 * 1024 * 1024
"""Bytes copied between two looks at the clock."""
_SYNC_EVERY = 64 * 1024 * 1024
"""Bytes after which those copied so far are synced: `syncfs` for a small upload would otherwise write whole joins."""


class FileJoiner:
    """Joins files. file_perms: of what is made. stopped: whether joins in flight have to end."""

    def __init__(self, *, file_perms: int, stopped: Callable[[], bool]) -> None:
        self._file_perms = file_perms
        self._stopped = stopped
        self._threads = Threads("tusd-join", _THREADS)

    async def join(self, target: str, parts: Sequence[tuple[str, str, int]]) -> None:
        """Makes the file `target` of `parts`, each an id, a path and a number of bytes; it is durable then, or not there.

        Raises UploadNotFound for a part that is gone, StorageError at the server's end, OSError.
        """
        work = _Join(target, parts, self._file_perms)
        try:
            # Turns queue in the order in which they are asked for, so all joins advance alike.
            while not await self._threads.run(work.take_turn):
                if self._stopped():
                    raise StorageError("stopped by the server's end")
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(target)
            raise
        finally:
            work.close()

    def close(self) -> None:
        """Returns when the turns in flight have ended."""
        self._threads.close()


class _Join:
    """One join on its way; its methods block."""

    def __init__(self, target: str, parts: Sequence[tuple[str, str, int]], perms: int) -> None:
        self._parts = iter(parts)
        self._target_path = target
        self._perms = perms
        self._target = -1
        self._source = -1
        self._offset = self._size = 0
        self._unsynced = 0

    def take_turn(self) -> bool:
        """Goes on for a moment; returns whether all is done and durable."""
        ends = time.monotonic() + _TURN_SECONDS
        if self._target < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._target = os.open(self._target_path, flags, self._perms)
        while True:
            if self._offset == self._size and not self._open_next():
                os.fsync(self._target)
                return True
            self._copy()
            if time.monotonic() >= ends:
                return False

    def _open_next(self) -> bool:
        """Opens the next part, one descriptor at a time: a final may have thousands. Returns whether there is one."""
        self._close_source()
        part = next(self._parts, None)
        if part is None:
            return False
        upload_id, path, self._size = part
        self._offset = 0
        try:
            self._source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UploadNotFound(f"{upload_id} was removed while it was being joined") from None
        return True

    def _copy(self) -> None:
        if self._offset == self._size:
            return
        count = min(_STEP, self._size - self._offset)
        copied = copy_some(self._source, self._target, count, self._offset)
        self._offset += copied
        self._unsynced += copied
        if self._unsynced >= _SYNC_EVERY:
            sync_data(self._target)
            self._unsynced = 0

    def _close_source(self) -> None:
        if self._source >= 0:
            os.close(self._source)
            self._source = -1

    def close(self) -> None:
        """Closes what is open."""
        self._close_source()
        if self._target >= 0:
            os.close(self._target)
            self._target = -1
