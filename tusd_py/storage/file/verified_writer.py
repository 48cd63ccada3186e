"""Bytes that count only once their checksum was found right.

They gather in blocks, straight from the socket where that can be, and threads hash and write what has gathered: hashing costs
more than everything else that is done to a byte, and does not wait for its turn in the event loop. A chunk that fits into one
block is written when it was found right, and nothing has to be taken back of a wrong one. A longer one is written as it comes,
and so is what comes in slowly or finds no block. From before the first byte in the file until all of them count, a marker says
where to cut back to, for a kill may come in the middle of a write. Not for: what the checksum should be.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from tusd_py.locks.base import Fence, LeaseLost
from tusd_py.protocol.checksum import Checksum, Hasher
from tusd_py.storage.errors import translated
from tusd_py.storage.file.buffers import LONG, SIZE, BufferPool
from tusd_py.storage.file.data_file import DataFile
from tusd_py.storage.file.disk import Disk
from tusd_py.storage.file.executor import Threads
from tusd_py.storage.file.fsync import sync_path
from tusd_py.storage.file.serial_queue import SerialQueue

_WORTHWHILE = 128 * 1024
"""Bytes that are left to a thread; the way into it costs as much as hashing some tens of KiB."""
_AHEAD = 4
"""Blocks that one upload may be ahead of its checksum; then it waits until half of them are done."""
_MOST_THREADS = 16


def hashing_threads() -> Threads:
    """Threads for what verified writers have to hash, as many as there are processors."""
    return Threads("tusd-hash", min(_processors(), _MOST_THREADS))


def _processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(slots=True)
class _Piece:
    """Bytes on their way into the file, and the block that they lie in, if they do."""

    data: memoryview
    block: memoryview | None


class VerifiedFileWriter:
    """Bytes at the end of one data file that count once they were found right; see `VerifiedWriter` and `ReceivesInPlace`.

    opened: opens the file. mark: makes the marker, and returns its path; marks_slowly: it takes a sync, which is not for the
    event loop. checksum: what was announced in front, if that was so. length: how many bytes are to come, where that is known.
    fence: of the upload's lock, around the removal of the marker; what `opened` and `mark` give have it already.
    """

    __slots__ = (
        "_abandoned",
        "_block",
        "_blocks",
        "_chain",
        "_checksum",
        "_closed",
        "_disk",
        "_fence",
        "_file",
        "_filled",
        "_hasher",
        "_is_fast",
        "_is_spilt",
        "_is_whole",
        "_mark",
        "_marker",
        "_marks_slowly",
        "_opened",
        "_problem",
        "_start",
        "_threads",
        "offset",
        "since",
    )

    def __init__(
        self,
        opened: Callable[[], DataFile],
        offset: int,
        threads: Threads,
        blocks: BufferPool,
        disk: Disk,
        *,
        mark: Callable[[], str],
        marks_slowly: bool = False,
        checksum: Checksum | None,
        length: int | None,
        fence: Fence,
    ) -> None:
        self.offset = offset
        self.since = 0.0
        self._start = offset
        self._opened = opened
        self._mark = mark
        self._marks_slowly = marks_slowly
        self._fence = fence
        self._threads = threads
        self._blocks = blocks
        self._disk = disk
        self._checksum = checksum
        self._hasher: Hasher | None = None
        # Whether all of it fits into a block, and stays there until it was found right.
        self._is_whole = length is not None and length <= SIZE
        # Others get a block once they have shown that they are worth it.
        self._is_fast = self._is_whole
        self._is_spilt = False
        self._block: memoryview | None = None
        self._filled = 0
        self._chain: SerialQueue[_Piece] | None = None
        self._file: DataFile | None = None
        self._marker: str | None = None
        self._problem: OSError | LeaseLost | None = None
        self._abandoned = False
        self._closed = False

    # What comes in

    def get_buffer(self) -> memoryview | None:
        if self._block is None and self._is_fast:
            self._block = self._blocks.take(self)
        return None if self._block is None else self._block[self._filled :]

    def write_view(self, data: memoryview) -> Awaitable[None] | None:
        with translated("writing"):
            self._check()
            self.offset += len(data)
            block = self._block
            if block is not None and data.obj is block.obj:
                self._took(len(data))
                return self._pause()
            if self._is_fast or block is not None or len(data) >= _WORTHWHILE:
                self._is_fast = True
                return self._gather(data)
            return self._take_at_once(data)

    async def write(self, data: bytes) -> None:
        rest = self.write_view(memoryview(data))
        if rest is not None:
            await rest

    def _gather(self, data: memoryview) -> Awaitable[None] | None:
        """Copies it into blocks, as far as there are any."""
        while data:
            if self._filled == SIZE:
                self._hand_over()
            room = self.get_buffer()
            if room is None:
                return self._take_at_once(data)
            size = min(len(room), len(data))
            room[:size] = data[:size]
            data = data[size:]
            self._took(size)
        return self._pause()

    def _took(self, size: int) -> None:
        """So many bytes came into the block."""
        self._filled += size
        if self._filled == SIZE:
            if not self._is_whole:
                self._hand_over()
        elif time.monotonic() - self.since > LONG:
            self._hand_over()
            self._is_fast = False

    def _pause(self) -> Awaitable[None] | None:
        """Where it is far ahead of its checksum."""
        if self._chain is not None and self._chain.left > _AHEAD:
            return self._wait_for(self._chain, _AHEAD // 2)
        return None

    def _take_at_once(self, data: memoryview) -> Awaitable[None] | None:
        """Hashes and writes it now, or behind what is under way already."""
        self._spill()
        chain = self._chain
        can_mark = self._marker is not None or not self._marks_slowly
        if can_mark and (chain is None or not chain.left) and self._disk.is_quick():
            self._process(_Piece(data, None))
            return None
        chain = self._add(_Piece(memoryview(bytes(data)), None))
        return self._wait_for(chain, 0)

    @staticmethod
    async def _wait_for(chain: SerialQueue[_Piece], left: int) -> None:
        with translated("writing"):
            await chain.left_are(left)

    def hurry(self) -> None:
        """See `Holder`."""
        self._is_fast = False
        try:
            self._hand_over()
        except (OSError, LeaseLost) as problem:
            self._problem = problem

    def _check(self) -> None:
        """Raises what went wrong since, if anything did."""
        if self._problem is not None:
            raise self._problem
        if self._chain is not None:
            self._chain.check()

    # From blocks into the file

    def _hand_over(self) -> None:
        """Lets a thread have what is in the block. Raises OSError, LeaseLost."""
        filled, self._filled = self._filled, 0
        block = self._let_go()
        if block is None:
            return
        if not filled:
            self._blocks.give_back(block)
            return
        try:
            self._spill()
        except (OSError, LeaseLost):
            self._blocks.give_back(block)
            raise
        self._add(_Piece(block[:filled], block))

    def _let_go(self) -> memoryview | None:
        """The block, which nobody fills any more."""
        block, self._block = self._block, None
        if block is not None:
            self._blocks.filled(self)
        return block

    def _begin(self) -> DataFile:
        """The file, in which there may be bytes from now on that do not count. Raises OSError, LeaseLost."""
        if self._file is None:
            self._file = self._opened()
        if self._marker is None:
            self._marker = self._mark()
        return self._file

    def _spill(self) -> None:
        """From now on what comes is not kept until all of it was found right. Raises OSError, LeaseLost."""
        if not self._is_spilt:
            if not self._marks_slowly and self._disk.is_quick():
                self._begin()
            self._is_spilt, self._is_whole = True, False
            if self._checksum is not None:
                self._hasher = self._checksum.hasher()

    def _add(self, piece: _Piece) -> SerialQueue[_Piece]:
        if self._chain is None:
            self._chain = SerialQueue(self._threads.executor, self._process, self._release)
        self._chain.add(piece)
        return self._chain

    def _process(self, piece: _Piece) -> None:
        if self._hasher is not None:
            self._hasher.update(piece.data)
        self._store(piece.data)

    def _store(self, data: memoryview) -> None:
        began = time.monotonic()
        try:
            self._begin().write(data)
        finally:
            self._disk.observe_change(began)

    def _release(self, piece: _Piece) -> None:
        if piece.block is not None:
            self._blocks.give_back(piece.block)

    # The end

    async def verify(self, checksum: Checksum) -> bool:
        with translated("writing"):
            self._check()
            if not self._is_spilt:
                return await self._verify_whole(checksum)
            self._hand_over()
            if self._chain is not None:
                await self._chain.left_are(0)
            if self._hasher is None:
                self._hasher = await self._threads.run(self._read_back, checksum)
        return checksum.matches(self._hasher)

    async def _verify_whole(self, checksum: Checksum) -> bool:
        self._blocks.filled(self)
        data = memoryview(b"") if self._block is None else self._block[: self._filled]
        if len(data) < _WORTHWHILE and not self._marks_slowly:
            return await self._disk.change(self._write_if_right, checksum, data)
        return await self._threads.run(self._write_if_right, checksum, data)

    def _write_if_right(self, checksum: Checksum, data: memoryview) -> bool:
        hasher = checksum.hasher()
        hasher.update(data)
        if not checksum.matches(hasher):
            return False
        if data:
            self._store(data)
        return True

    def _read_back(self, checksum: Checksum) -> Hasher:
        """A checksum that was not announced, of all that was added."""
        if self._file is None:
            raise OSError(errno.EIO, "there is no file to be read back")
        hasher = checksum.hasher()
        at = self._start
        view = memoryview(bytearray(min(SIZE, self.offset - at)))
        while at < self.offset:
            count = self._file.read(view[: self.offset - at], at)
            if not count:
                raise OSError(errno.EIO, "the data file is shorter than what was written")
            hasher.update(view[:count])
            at += count
        return hasher

    async def discard(self) -> None:
        if self._chain is not None:
            await self._chain.stop()
        with translated("cutting back"):
            if self._file is not None:
                await self._disk.change(self._file.cut_back)
            await self._disk.change(self._remove_marker)
        self.offset = self._start

    def abandon(self) -> None:
        self._abandoned = True

    async def close(self, *, sync: bool) -> None:
        if self._closed:
            return
        self._closed = True
        block = self._let_go()
        if block is not None:
            self._blocks.give_back(block)
        if self._chain is not None:
            await self._chain.stop()
        if self._file is None:
            return
        await self._file.settle()
        try:
            await self._file.check_losses()
            if sync:
                await self._file.sync()
            if self._marker is not None and not self._abandoned:
                directory = os.path.dirname(self._marker)
                await self._disk.change(self._remove_marker)
                if sync:
                    with translated("syncing"):
                        await self._threads.run(sync_path, directory)
        finally:
            self._file.close()

    def _remove_marker(self) -> None:
        """From now on what was added counts. Raises LeaseLost: another holder cut it back, or will."""
        if self._marker is not None:
            with translated("removing a marker"), suppress(FileNotFoundError), self._fence():
                os.unlink(self._marker)
            self._marker = None
