"""Chunks with a checksum: nothing of them reaches the bucket before the checksum is right.

They wait in memory as long as they are shorter than a part and the spool has room, then in a file of the spool directory,
without a name, and are passed on when they count. They also move to the file when others wait for room. A part of a multipart
upload cannot be taken back, and a chunk may be longer than all parts that fit into memory.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable
from contextlib import ExitStack
from typing import IO

from tusd_py.protocol.checksum import Checksum
from tusd_py.storage.base import StorageError, StorageFull
from tusd_py.storage.errors import takes_nothing
from tusd_py.storage.s3.spool import Spool
from tusd_py.storage.s3.writer import S3Writer

_PIECE_BYTES = 1024 * 1024
_INLINE_BYTES = 1024 * 1024
"""Bytes that are hashed in the event loop: a thread would take longer to begin."""


class VerifiedS3Writer:
    """See `Writer` and `Holder`.

    writer: gets the bytes once they are verified. spool: counts those in memory. most: bytes that may be there. directory: of
    the spool; None for the system's.
    """

    def __init__(self, writer: S3Writer, spool: Spool, most: int, directory: str | None) -> None:
        self._writer = writer
        self._spool = spool
        self._most = most
        self._directory = directory
        self._memory = bytearray()
        self._taken = 0
        """Bytes in memory that the spool counts."""
        self._must_stay = False
        """Whether the memory is in use, or the file takes nothing."""
        self._file: IO[bytes] | None = None
        self._size = 0
        self._counts = False
        self._is_over = False
        spool.enter(self)

    @property
    def offset(self) -> int:
        return self._writer.offset + (0 if self._counts else self._size)

    @property
    def kept(self) -> int:
        return self._writer.kept

    def get_buffer(self) -> memoryview | None:
        return None

    def write(self, data: memoryview) -> Awaitable[None] | None:
        if (
            self._file is None
            and self._size + data.nbytes <= self._most
            and not self._spool.is_full
        ):
            self._memory += data
            self._taken += data.nbytes
            self._spool.take(data.nbytes)
        else:
            self._write_to_file(data)
        self._size += data.nbytes
        self._writer.note_arrival()
        return None

    def _write_to_file(self, data: memoryview) -> None:
        try:
            if self._file is None:
                self._file = self._new_file()
            if self._memory:
                _write_all(self._file, memoryview(self._memory))
                self._free_memory()
            _write_all(self._file, data)
        except OSError as problem:
            kind = StorageFull if takes_nothing(problem) else StorageError
            raise kind(f"the spool directory: {problem}") from problem

    def _new_file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._directory, buffering=0)

    def _free_memory(self) -> None:
        self._spool.give_back(self._taken)
        self._memory, self._taken = bytearray(), 0

    @property
    def idle_bytes(self) -> int:
        return 0 if self._must_stay else self._taken

    @property
    def part_bytes(self) -> int:
        return 0

    async def relieve(self) -> None:
        """Move the bytes from memory to a file. If that fails, they stay: only what comes next may need the file."""
        if not self.idle_bytes:
            return
        with ExitStack() as unless_moved:
            try:
                file = unless_moved.enter_context(self._new_file())
                _write_all(file, memoryview(self._memory))
            except OSError:
                self._must_stay = True
                return
            self._file = file
            unless_moved.pop_all()
        self._free_memory()

    async def verify(self, checksum: Checksum) -> bool:
        if self._size <= _INLINE_BYTES:
            self._counts = self._has(checksum)
        else:
            self._must_stay = True
            self._counts = await asyncio.to_thread(self._has, checksum)
            self._must_stay = False
        return self._counts

    def _has(self, checksum: Checksum) -> bool:
        hasher = checksum.hasher()
        for at in range(0, self._size, _PIECE_BYTES):
            hasher.update(self._read(at))
        return checksum.matches(hasher)

    def _read(self, at: int) -> bytes | memoryview:
        if self._file is None:
            return memoryview(self._memory)[at : at + _PIECE_BYTES]
        return os.pread(self._file.fileno(), min(_PIECE_BYTES, self._size - at), at)

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
                for at in range(0, self._size, _PIECE_BYTES):
                    rest = self._writer.write(self._pass_on(at))
                    if rest is not None:
                        await rest
            elif not self._is_over:
                self._size = 0
        finally:
            self._spool.leave(self)
            self._free_memory()
            if self._file is not None:
                self._file.close()
                self._file = None
            await self._writer.close(sync=sync, finishing=finishing)

    def _pass_on(self, at: int) -> memoryview:
        """Return a piece that the spool counts with its next holder from now on: it may be the room that this one waits for."""
        piece = memoryview(self._read(at))
        passed = min(piece.nbytes, self._taken)
        self._spool.give_back(passed)
        self._taken -= passed
        return piece


def _write_all(file: IO[bytes], data: memoryview) -> None:
    while data.nbytes:
        data = data[os.write(file.fileno(), data) :]
