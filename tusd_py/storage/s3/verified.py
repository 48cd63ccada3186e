"""Chunks with a checksum: nothing of them reaches the bucket before the checksum is right.

They wait in memory as long as they are shorter than a part and the spool has room, then in a file of the spool directory,
without a name, and are passed on when they count. They also move to the file when others wait for room. A part of a multipart
upload cannot be taken back, and a chunk may be longer than all parts that fit into memory. The file is read and written in
threads: a disk that stands still holds only the requests whose bytes are there.
"""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
import threading
from collections import deque
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO

from tusd_py.protocol.checksum import Checksum
from tusd_py.storage.base import StorageError, StorageFull
from tusd_py.storage.errors import takes_nothing
from tusd_py.storage.s3.spool import Spool
from tusd_py.storage.s3.writer import S3Writer

_PIECE_BYTES = 1024 * 1024
_INLINE_BYTES = 1024 * 1024
"""Bytes that are hashed in the event loop: a thread would take longer to begin."""


class _ChunkFile:
    """A file without a name, which threads use. Methods but `close` block, and raise OSError.

    A relief is a task of its own and goes on when the request has ended. Its thread knows the descriptor by its number only,
    which is another file's as soon as it is closed: so it is closed when no thread uses it.
    """

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._in_use = threading.Lock()
        self._is_closed = False

    def write(self, pieces: Iterable[bytes | bytearray], at: int) -> None:
        """Write pieces one behind the other, from byte `at` on."""
        with self._descriptor() as descriptor:
            for piece in pieces:
                _write_all(descriptor, memoryview(piece), at)
                at += len(piece)

    def read(self, at: int, size: int) -> bytes:
        with self._descriptor() as descriptor:
            return os.pread(descriptor, size, at)

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        """Keep the file open for the block. It is made when it is first used."""
        try:
            with self._in_use:
                if self._is_closed:
                    raise OSError(errno.EBADF, "the request has ended")
                if self._file is None:
                    self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - see `close`
                yield self._file.fileno()
        finally:
            if self._is_closed:
                self.close()

    def close(self) -> None:
        """Close the file, now or when the thread that uses it is done with it. Never blocks for that thread."""
        self._is_closed = True
        if not self._in_use.acquire(blocking=False):
            # Its holder closes it.
            return
        try:
            if self._file is not None:
                self._file.close()
                self._file = None
        finally:
            self._in_use.release()


class VerifiedS3Writer:
    """See `Writer` and `Holder`.

    writer: gets the bytes once they are verified. spool: counts those in memory. most: bytes that may be there. directory: of
    the spool; None for the system's.
    """

    needs_disk = True

    def __init__(self, writer: S3Writer, spool: Spool, most: int, directory: str | None) -> None:
        self._writer = writer
        self._spool = spool
        self._most = most
        self._directory = directory
        self._pieces: deque[bytearray] = deque()
        """The bytes in memory that do not move, which come behind those in the file; none has more than `_PIECE_BYTES`."""
        self._taken = 0
        """Bytes in memory that the spool counts."""
        self._must_stay = False
        """Whether the file takes nothing."""
        self._file: _ChunkFile | None = None
        """Has each byte at its place in the chunk, but for those that were passed on before it was made."""
        self._filed = 0
        """Where the bytes in the file end."""
        self._turn = asyncio.Lock()
        """Held while the bytes move to the file, or are read."""
        self._size = 0
        self._passed = 0
        self._counts = False
        self._is_over = False
        self._is_closed = False
        spool.enter(self)

    @property
    def offset(self) -> int:
        return self._writer.offset + (0 if self._counts else self._size)

    @property
    def kept(self) -> int:
        return self._writer.kept

    def get_buffer(self) -> memoryview | None:
        return self._spool.small_buffer if self._spool.is_full or self._turn.locked() else None

    def write(self, data: memoryview) -> Awaitable[None] | None:
        self._size += data.nbytes
        self._writer.note_arrival()
        fits = not self._turn.locked() and self._fits()
        self._keep(data)
        return None if fits else self._make_room()

    def _fits(self) -> bool:
        """Whether the bytes that were added may be in memory: behind a file less than a piece, so that threads are worth it."""
        most = self._most if self._file is None else self._filed + _PIECE_BYTES - 1
        return self._size <= most and not self._spool.is_full

    def _keep(self, data: memoryview) -> None:
        self._taken += data.nbytes
        self._spool.take(data.nbytes)
        while data.nbytes:
            if not self._pieces or len(self._pieces[-1]) == _PIECE_BYTES:
                self._pieces.append(bytearray())
            last = self._pieces[-1]
            count = _PIECE_BYTES - len(last)
            last += data[:count]
            data = data[count:]

    async def _make_room(self) -> None:
        """Wait for bytes that move to the file, and move the others there too unless they may be in memory."""
        async with self._turn:
            if not self._fits():
                with self._translated():
                    await self._move()

    @staticmethod
    @contextmanager
    def _translated() -> Iterator[None]:
        """Raise StorageFull or StorageError for an error of the disk."""
        try:
            yield
        except OSError as problem:
            kind = StorageFull if takes_nothing(problem) else StorageError
            raise kind(f"the spool directory: {problem}") from problem

    async def _move(self) -> None:
        """Move the bytes from memory to the file. If that fails, they stay. Raises OSError.

        They are counted until they are in no memory any more, also if the writer is closed meanwhile.
        """
        pieces, moving, is_moved = self._pieces, self._taken, False
        start = self._passed if self._file is None else self._filed
        file = self._file or _ChunkFile(self._directory)
        # What comes meanwhile waits behind them.
        self._pieces, self._taken = deque(), 0
        try:
            await self._spool.threads.run(file.write, pieces, start)
            is_moved = True
        finally:
            if is_moved or self._is_closed:
                self._spool.give_back(moving)
            else:
                self._pieces.extendleft(reversed(pieces))
                self._taken += moving
            if is_moved and not self._is_closed:
                self._file, self._filed = file, start + sum(map(len, pieces))
            if file is not self._file:
                file.close()

    @property
    def idle_bytes(self) -> int:
        return 0 if self._must_stay or self._turn.locked() else self._taken

    @property
    def part_bytes(self) -> int:
        return 0

    async def relieve(self) -> None:
        """Move the bytes from memory to a file. If that fails, they stay: only what comes next may need the file."""
        if not self.idle_bytes:
            return
        async with self._turn:
            try:
                await self._move()
            except OSError:
                self._must_stay = True

    async def verify(self, checksum: Checksum) -> bool:
        async with self._turn:
            if self._file is not None:
                with self._translated():
                    await self._move()
                    self._counts = await self._spool.threads.run(
                        self._file_has, self._file, checksum
                    )
            elif self._size <= _INLINE_BYTES:
                self._counts = _have(self._pieces, checksum)
            else:
                # Not in the threads of the disk, which may all stand still.
                # The thread may be late to let go of what it was given: of an iterator that has ended.
                pieces = iter(list(self._pieces))
                self._counts = await asyncio.to_thread(_have, pieces, checksum)
        self._must_stay = False
        return self._counts

    def _file_has(self, file: _ChunkFile, checksum: Checksum) -> bool:
        starts = range(0, self._size, _PIECE_BYTES)
        return _have((self._read(file, at) for at in starts), checksum)

    def _read(self, file: _ChunkFile, at: int) -> bytes:
        return file.read(at, min(_PIECE_BYTES, self._size - at))

    async def discard(self) -> None:
        self._is_over = True
        self._size = 0
        await self._writer.discard()

    def abandon(self) -> None:
        self._is_over = True
        self._writer.abandon()

    async def close(self, *, sync: bool, finishing: bool = False) -> None:
        try:
            if self._counts and not self._is_over:
                await self._pass_all()
            elif not self._is_over:
                self._size = 0
        finally:
            self._is_closed = True
            self._spool.leave(self)
            self._spool.give_back(self._taken)
            self._taken = 0
            self._pieces.clear()
            if self._file is not None:
                self._file.close()
                self._file = None
            await self._writer.close(sync=sync, finishing=finishing)

    async def _pass_all(self) -> None:
        while self._passed < self._size:
            async with self._turn:
                rest = self._pass_on(await self._next_piece())
            # Meanwhile what is left may move to the file: it may be the room that this one, or another one, waits for.
            if rest is not None:
                await rest

    async def _next_piece(self) -> bytes | bytearray:
        if self._file is None:
            return self._pieces[0]
        with self._translated():
            piece = await self._spool.threads.run(self._read, self._file, self._passed)
        if not piece:
            raise StorageError("the file of the spool directory lacks bytes that were written")
        return piece

    def _pass_on(self, piece: bytes | bytearray) -> Awaitable[None] | None:
        """Pass a piece on, which the spool counts with its next holder from now on. That copies it."""
        if self._file is None:
            self._spool.give_back(len(piece))
            self._taken -= len(piece)
            self._pieces.popleft()
        self._passed += len(piece)
        return self._writer.write(memoryview(piece))


def _have(pieces: Iterable[bytes | bytearray], checksum: Checksum) -> bool:
    """Whether these bytes have the checksum."""
    hasher = checksum.hasher()
    for piece in pieces:
        hasher.update(piece)
    return checksum.matches(hasher)


def _write_all(descriptor: int, data: memoryview, at: int) -> None:
    while data.nbytes:
        count = os.pwrite(descriptor, data, at)
        data, at = data[count:], at + count
