"""Joining of files, in threads of their own and in short time slices.

However many and large the joins are, they take no thread from syncs, removals and checks, and a small join does not wait for a
large one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from tusd_py.storage.base import StorageError, Upload, UploadNotFound
from tusd_py.storage.file.copying import copy_some
from tusd_py.storage.file.executor import Threads
from tusd_py.storage.file.fsync import sync_data
from tusd_py.storage.file.soundness import check_same

_THREADS = 2
_SLICE_SECONDS = 0.05
"""Time after which a join yields to others. One step may take longer on a slow disk."""
_STEP_BYTES = 16 * 1024 * 1024
"""Bytes copied between two checks of the clock."""
_SYNC_BYTES = 64 * 1024 * 1024
"""Bytes after which a join syncs: a `syncfs` for a small upload would otherwise write out whole joins."""


class FileJoiner:
    """Joins files. file_perms: permission bits of new files. stopped: returns whether running joins must end."""

    def __init__(self, *, file_perms: int, stopped: Callable[[], bool]) -> None:
        self._file_perms = file_perms
        self._stopped = stopped
        self._threads = Threads("tusd-join", _THREADS)

    async def join(self, target: str, parts: Sequence[tuple[Upload, str]]) -> None:
        """Create the file `target` from `parts`. It is durable when this returns, and removed if this raises.

        Args:
            target: Path of the new file.
            parts: Each part, and the path of its bytes.

        Raises:
            UploadNotFound: A part is gone.
            StorageError: The server is stopping.
            OSError: Reading or writing failed.
        """
        work = _Join(target, parts, self._file_perms)
        try:
            # Slices are queued in order of request, so all joins progress alike.
            while not await self._threads.run(work.run_slice):
                if self._stopped():
                    raise StorageError("the server is stopping")
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(target)
            raise
        finally:
            work.close()

    def close(self) -> None:
        """Wait for the running slices."""
        self._threads.close()


class _Join:
    """One join in progress; its methods block."""

    def __init__(self, target: str, parts: Sequence[tuple[Upload, str]], perms: int) -> None:
        self._parts = iter(parts)
        self._target_path = target
        self._perms = perms
        self._target = -1
        self._source = -1
        self._offset = self._size = 0
        self._unsynced = 0

    def run_slice(self) -> bool:
        """Copy for one time slice; returns whether the join is complete and durable."""
        ends = time.monotonic() + _SLICE_SECONDS
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
        """Open the next part, closing the last: a final may have thousands. Returns False at the end."""
        self._close_source()
        part = next(self._parts, None)
        if part is None:
            return False
        upload, path = part
        self._size, self._offset = upload.offset, 0
        try:
            self._source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UploadNotFound(f"{upload.id} was removed while it was being joined") from None
        check_same(upload, os.fstat(self._source))
        return True

    def _copy(self) -> None:
        if self._offset == self._size:
            return
        count = min(_STEP_BYTES, self._size - self._offset)
        copied = copy_some(self._source, self._target, count, self._offset)
        self._offset += copied
        self._unsynced += copied
        if self._unsynced >= _SYNC_BYTES:
            sync_data(self._target)
            self._unsynced = 0

    def _close_source(self) -> None:
        if self._source >= 0:
            os.close(self._source)
            self._source = -1

    def close(self) -> None:
        """Close the open files."""
        self._close_source()
        if self._target >= 0:
            os.close(self._target)
            self._target = -1
