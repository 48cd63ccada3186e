"""The writers of one data file: of bytes that count as they are written, and of those that count once they are verified.

Both write in the event loop while the disk is quick, and in a thread while it is slow (`disk.py`).

Bytes of a verified chunk are received into buffers, straight from the socket if possible, and threads hash and write full
buffers: hashing costs more than anything else done to a byte, so it does not run in the event loop. A chunk that fits into
one buffer is written only after verification, so a wrong one leaves nothing to undo. Longer chunks are written as they
arrive, as are those of slow clients and those that get no buffer. From before the first byte in the file until all of them
count, a marker holds the length to cut back to, as the process may be killed in the middle of a write.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field

from tusd_py.locks.base import Fence
from tusd_py.protocol.checksum import Checksum, Hasher
from tusd_py.storage.errors import translated
from tusd_py.storage.file.buffers import BUFFER_BYTES, SLOW_FILL_SECONDS, BufferPool
from tusd_py.storage.file.data_file import DataFile
from tusd_py.storage.file.disk import Disk
from tusd_py.storage.file.fsync import sync_path
from tusd_py.storage.file.threads import SerialQueue, Threads

_THREAD_BYTES = 128 * 1024
"""Size from which bytes are hashed in a thread; a switch to one costs as much as hashing some tens of KiB."""
_MAX_QUEUED = 4
"""Buffers that one upload may have queued for hashing; then it waits until half of them are done."""
_MAX_THREADS = 16


def hashing_threads() -> Threads:
    """Return threads for hashing, one for each processor."""
    return Threads("tusd-hash", min(_processors(), _MAX_THREADS))


def _processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(slots=True)
class _Piece:
    """Bytes on their way into the file, and the buffer that holds them, if any."""

    data: memoryview
    buffer: memoryview | None


@dataclass(slots=True, eq=False)
class FileWriter:
    """Appends bytes to one data file that count at once; see `Writer`."""

    file: DataFile
    disk: Disk
    _closed: bool = field(default=False, init=False)

    @property
    def offset(self) -> int:
        return self.file.end

    @property
    def kept(self) -> int:
        return self.file.end

    def get_buffer(self) -> memoryview | None:
        return None

    def write(self, data: memoryview) -> Awaitable[None] | None:
        return _write(self.disk, self.file.write, data)

    async def verify(self, checksum: Checksum) -> bool:
        raise RuntimeError("not a verified chunk")

    async def discard(self) -> None:
        with translated("cutting back"):
            await self.disk.change(self.file.cut_back)

    def abandon(self) -> None:
        """Nothing to do: each write counted when it was made."""

    async def close(self, *, sync: bool, finishing: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        await self.file.settle()
        try:
            await self.file.check_losses()
            if sync:
                await self.file.sync()
        finally:
            self.file.close()


@dataclass(slots=True, eq=False)
class VerifiedFileWriter:
    """Appends bytes to one data file that count once verified; see `Writer`.

    Attributes:
        open_file: Opens the data file. Fenced already.
        offset: Its length in bytes, with those added.
        threads: For hashing and writing.
        buffers: The pool of buffers.
        disk: For short file operations.
        mark: Creates the marker and returns its path. Fenced already.
        marks_slowly: `mark` syncs, so it must not run in the event loop.
        checksum: The expected checksum, if announced in advance.
        length: Number of bytes to come, if known.
        fence: Of the upload's lock, used around the removal of the marker.
        since: See `Holder`.
    """

    open_file: Callable[[], DataFile]
    offset: int
    threads: Threads
    buffers: BufferPool
    disk: Disk
    _: KW_ONLY
    mark: Callable[[], str]
    marks_slowly: bool = False
    checksum: Checksum | None
    length: int | None
    fence: Fence
    since: float = field(default=0.0, init=False)
    _start: int = field(init=False)
    _hasher: Hasher | None = field(default=None, init=False)
    # Whether all bytes fit into one buffer and stay there until verified.
    _is_whole: bool = field(init=False)
    # Whether it may have a buffer: other clients get one once they prove fast.
    _is_fast: bool = field(init=False)
    _is_spilt: bool = field(default=False, init=False)
    _buffer: memoryview | None = field(default=None, init=False)
    _filled: int = field(default=0, init=False)
    _queue: SerialQueue[_Piece] | None = field(default=None, init=False)
    _file: DataFile | None = field(default=None, init=False)
    _marker: str | None = field(default=None, init=False)
    _abandoned: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._start = self.offset
        self._is_fast = self._is_whole = self.length is not None and self.length <= BUFFER_BYTES

    # Receiving

    @property
    def kept(self) -> int:
        return self._start

    def get_buffer(self) -> memoryview | None:
        if self._buffer is None and self._is_fast:
            self._buffer = self.buffers.acquire(self)
        return None if self._buffer is None else self._buffer[self._filled :]

    def write(self, data: memoryview) -> Awaitable[None] | None:
        with translated("writing"):
            self._check()
            self.offset += len(data)
            buffer = self._buffer
            if buffer is not None and data.obj is buffer.obj:
                self._advance(len(data))
                return self._wait_if_ahead()
            if self._is_fast or buffer is not None or len(data) >= _THREAD_BYTES:
                self._is_fast = True
                return self._gather(data)
            return self._write_at_once(data)

    def _gather(self, data: memoryview) -> Awaitable[None] | None:
        """Copy `data` into buffers, as far as there are any."""
        while data:
            if self._filled == BUFFER_BYTES:
                self._submit_buffer()
            buffer = self.get_buffer()
            if buffer is None:
                return self._write_at_once(data)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            data = data[size:]
            self._advance(size)
        return self._wait_if_ahead()

    def _advance(self, size: int) -> None:
        """Account for `size` bytes added to the buffer; submit it if it is full or the client is slow."""
        self._filled += size
        if self._filled == BUFFER_BYTES:
            if not self._is_whole:
                self._submit_buffer()
        elif time.monotonic() - self.since > SLOW_FILL_SECONDS:
            self._submit_buffer()
            self._is_fast = False

    def _wait_if_ahead(self) -> Awaitable[None] | None:
        """Return what to wait for if too many buffers are queued."""
        if self._queue is not None and self._queue.left > _MAX_QUEUED:
            return _wait_for(self._queue, _MAX_QUEUED // 2)
        return None

    def _write_at_once(self, data: memoryview) -> Awaitable[None] | None:
        """Hash and write `data` now, or after what is queued already."""
        self._spill()
        queue = self._queue
        if (queue is not None and queue.left) or (self.marks_slowly and self._marker is None):
            return _wait_for(self._add(_Piece(memoryview(bytes(data)), None)), 0)
        self._check()
        return _write(self.disk, self._process, data)

    def flush(self) -> None:
        """See `Holder`."""
        self._is_fast = False
        self._submit_buffer()

    def _check(self) -> None:
        """Raise the error of earlier bytes, if any."""
        if self._queue is not None:
            self._queue.check()

    # From buffers into the file

    def _submit_buffer(self) -> None:
        """Queue the buffer for a thread."""
        filled, self._filled = self._filled, 0
        buffer = self._detach_buffer()
        if buffer is None:
            return
        if not filled:
            self.buffers.release(buffer)
            return
        self._spill()
        self._add(_Piece(buffer[:filled], buffer))

    def _detach_buffer(self) -> memoryview | None:
        """Stop filling the buffer and return it."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self.buffers.filled(self)
        return buffer

    def _begin(self) -> DataFile:
        """Open the file and create its marker, once, before bytes that do not count. Raises OSError, LeaseLost."""
        if self._file is None:
            self._file = self.open_file()
        if self._marker is None:
            self._marker = self.mark()
        return self._file

    def _spill(self) -> None:
        """Start writing bytes before all of them are verified."""
        if not self._is_spilt:
            self._is_spilt, self._is_whole = True, False
            if self.checksum is not None:
                self._hasher = self.checksum.hasher()

    def _add(self, piece: _Piece) -> SerialQueue[_Piece]:
        if self._queue is None:
            self._queue = SerialQueue(self.threads.executor, self._process_queued, self._release)
        self._queue.add(piece)
        return self._queue

    def _process(self, data: memoryview) -> None:
        if self._hasher is not None:
            self._hasher.update(data)
        self._begin().write(data)

    def _process_queued(self, piece: _Piece) -> None:
        if self._hasher is not None:
            self._hasher.update(piece.data)
        with self.disk.observed():
            self._begin().write(piece.data)

    def _release(self, piece: _Piece) -> None:
        if piece.buffer is not None:
            self.buffers.release(piece.buffer)

    # Verifying and closing

    async def verify(self, checksum: Checksum) -> bool:
        with translated("writing"):
            self._check()
            if not self._is_spilt:
                return await self._verify_whole(checksum)
            self._submit_buffer()
            if self._queue is not None:
                await self._queue.wait_until_left(0)
            if self._hasher is None:
                self._hasher = await self.threads.run(self._read_back, checksum)
        return checksum.matches(self._hasher)

    async def _verify_whole(self, checksum: Checksum) -> bool:
        self.buffers.filled(self)
        data = memoryview(b"") if self._buffer is None else self._buffer[: self._filled]
        if len(data) < _THREAD_BYTES and not self.marks_slowly:
            return await self.disk.change(self._write_if_verified, checksum, data)
        return await self.threads.run(self._write_if_verified, checksum, data)

    def _write_if_verified(self, checksum: Checksum, data: memoryview) -> bool:
        hasher = checksum.hasher()
        hasher.update(data)
        if not checksum.matches(hasher):
            return False
        if data:
            with self.disk.observed():
                self._begin().write(data)
        return True

    def _read_back(self, checksum: Checksum) -> Hasher:
        """Hash all added bytes with a checksum that was not announced."""
        if self._file is None:
            raise OSError(errno.EIO, "there is no file to read back")
        hasher = checksum.hasher()
        at = self._start
        view = memoryview(bytearray(min(BUFFER_BYTES, self.offset - at)))
        while at < self.offset:
            count = self._file.read(view[: self.offset - at], at)
            if not count:
                raise OSError(errno.EIO, "the data file is shorter than what was written")
            hasher.update(view[:count])
            at += count
        return hasher

    async def discard(self) -> None:
        if self._queue is not None:
            await self._queue.stop()
        with translated("cutting back"):
            if self._file is not None:
                await self.disk.change(self._file.cut_back)
            await self.disk.change(self._remove_marker)
        self.offset = self._start

    def abandon(self) -> None:
        self._abandoned = True

    async def close(self, *, sync: bool, finishing: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        buffer = self._detach_buffer()
        if buffer is not None:
            self.buffers.release(buffer)
        if self._queue is not None:
            await self._queue.stop()
        if self._file is None:
            return
        await self._file.settle()
        try:
            await self._file.check_losses()
            if sync:
                await self._file.sync()
            if self._marker is not None and not self._abandoned:
                directory = os.path.dirname(self._marker)
                await self.disk.change(self._remove_marker)
                if sync:
                    with translated("syncing"):
                        await self.threads.run(sync_path, directory)
        finally:
            self._file.close()

    def _remove_marker(self) -> None:
        """Make the added bytes count. Raises LeaseLost: another holder has cut them back, or will."""
        if self._marker is not None:
            with translated("removing a marker"), suppress(FileNotFoundError), self.fence():
                os.unlink(self._marker)
            self._marker = None


def _write(
    disk: Disk, function: Callable[[memoryview], None], data: memoryview
) -> Awaitable[None] | None:
    """Write bytes by the rule of `disk`. Raises StorageError, LeaseLost."""
    with translated("writing"):
        rest = disk.write(function, data)
    return None if rest is None else _translated(rest)


async def _translated(writing: Awaitable[None]) -> None:
    with translated("writing"):
        await writing


async def _wait_for(queue: SerialQueue[_Piece], left: int) -> None:
    with translated("writing"):
        await queue.wait_until_left(left)
