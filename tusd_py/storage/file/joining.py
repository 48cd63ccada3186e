"""Joining of files, in threads of their own and in short time slices.

However many and large the joins are, they take no thread from syncs, removals and checks, and a small join does not wait for a
large one. The kernel copies where it can, sharing blocks on file systems that do that.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from tusd_py.locks.base import Fence
from tusd_py.storage.base import StorageError, Upload, UploadInfo, UploadNotFound
from tusd_py.storage.errors import translated
from tusd_py.storage.file.disk import Disk
from tusd_py.storage.file.finals import FinalRecords
from tusd_py.storage.file.fsync import sync_data
from tusd_py.storage.file.layout import Layout
from tusd_py.storage.file.loading import check_same
from tusd_py.storage.file.threads import Threads

_THREADS = 2
_SLICE_SECONDS = 0.05
"""Time after which a join yields to others. One step may take longer on a slow disk."""
_STEP_BYTES = 16 * 1024 * 1024
"""Bytes copied between two checks of the clock."""
_SYNC_BYTES = 64 * 1024 * 1024
"""Bytes after which a join syncs: a `syncfs` for a small upload would otherwise write out whole joins."""


class FileJoiner:
    """See `Joiner`. finals: the indexes of finals. disk, threads: of the store."""

    def __init__(
        self, layout: Layout, finals: FinalRecords, *, disk: Disk, threads: Threads
    ) -> None:
        self._layout = layout
        self._finals = finals
        self._disk = disk
        self._threads = threads
        self._joining = Threads("tusd-join", _THREADS)
        self._closing = False

    def close(self) -> None:
        """Stop the joins in progress at their next step. Blocking."""
        self._closing = True
        self._joining.close()

    async def join(self, final: UploadInfo, parts: Sequence[Upload], *, fence: Fence) -> None:
        with translated(f"joining {final.id}"):
            tmp = self._layout.new_path(final.id)
            await self._copy(tmp, [(part, self._layout.data_path(part.info)) for part in parts])
            try:
                await self._threads.run(self._place, tmp, self._layout.data_path(final), fence)
            except BaseException:
                await self._disk.change(os.unlink, tmp)
                raise

    async def _copy(self, target: str, parts: Sequence[tuple[Upload, str]]) -> None:
        """Create the file `target` from parts, each with the path of its bytes.

        It is durable when this returns, and removed if this raises: UploadNotFound for a part that is gone, StorageError when
        the server stops, OSError.
        """
        work = _Join(target, parts, self._layout.file_perms)
        try:
            # Slices are queued in order of request, so all joins progress alike.
            while not await self._joining.run(work.run_slice):
                if self._closing:
                    raise StorageError("the server is stopping")
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(target)
            raise
        finally:
            work.close()

    def _place(self, tmp: str, target: str, fence: Fence) -> None:
        with fence():
            try:
                os.rename(tmp, target)
            except FileNotFoundError:
                # Its directory was empty until now, so another upload's removal may have removed it.
                os.makedirs(os.path.dirname(target), self._layout.dir_perms, exist_ok=True)
                os.rename(tmp, target)

    async def await_parts(self, part_ids: Sequence[str], final_id: str) -> None:
        with translated(f"recording the parts of {final_id}"):
            await self._threads.run(self._finals.await_parts, part_ids, final_id)

    async def finals_awaiting(self, part_id: str) -> list[str]:
        with translated(f"reading the finals of {part_id}"):
            return await self._disk.read(self._finals.awaiting, part_id)

    async def forget_awaiting(self, part_ids: Sequence[str], final_id: str) -> None:
        with translated(f"joining {final_id}"):
            await self._threads.run(self._finals.forget_awaiting, part_ids, final_id)

    async def remember_final(self, key: str, final_id: str, *, fence: Fence) -> None:
        with translated(f"creating {final_id}"):
            self._finals.remember(key, final_id, fence)

    async def forget_final(self, key: str, final_id: str, *, fence: Fence) -> None:
        with translated("removing a final's key"), fence():
            if self._finals.recall(key) == final_id:
                self._finals.forget(key)

    async def recall_final(self, key: str) -> str | None:
        with translated("reading a final's key"):
            return self._finals.recall(key)


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
        self._close_source()
        if self._target >= 0:
            os.close(self._target)
            self._target = -1


_READ_BYTES = 1024 * 1024
_CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}


def copy_some(source: int, target: int, count: int, offset: int) -> int:
    """Append bytes of one file to another.

    Uses `copy_file_range`, which shares blocks on file systems that can; elsewhere reads and writes.

    Args:
        source: Descriptor to copy from.
        target: Descriptor to append to.
        count: The most bytes to copy.
        offset: Where they start in `source`.

    Returns:
        How many bytes were copied, at least one.

    Raises:
        OSError: Copying failed; EIO if `source` has no bytes there.
    """
    copied = _copy(source, target, count, offset)
    if copied == 0:
        raise OSError(errno.EIO, "a part is shorter than its length")
    return copied


def _copy(source: int, target: int, count: int, offset: int) -> int:
    if sys.platform == "linux":
        try:
            return os.copy_file_range(source, target, count, offset_src=offset)
        except OSError as problem:
            if problem.errno not in _CANNOT:
                raise
    data = os.pread(source, min(count, _READ_BYTES), offset)
    written = 0
    while written < len(data):
        written += os.write(target, data[written:])
    return written
