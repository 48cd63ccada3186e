"""Chunks with a checksum: nothing of them reaches the bucket before the checksum is right.

They wait in memory as long as they are shorter than a part and the spool has room, then in a file of the spool directory,
without a name, and are passed on when they count. A part of a multipart upload cannot be taken back, and a chunk may be longer
than all parts that fit into memory.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable
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
    """See `Writer`.

    writer: gets the bytes once they are verified. spool: counts those in memory. most: bytes that may be there. directory: of
    the spool; None for the system's.
    """

    def __init__(self, writer: S3Writer, spool: Spool, most: int, directory: str | None) -> None:
        self._writer = writer
        self._spool = spool
        self._most = most
        self._directory = directory
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._size = 0
        self._counts = False
        self._is_over = False

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
            self._spool.take(data.nbytes)
        else:
            self._write_to_file(data)
        self._size += data.nbytes
        self._writer.note_arrival()
        return None

    def _write_to_file(self, data: memoryview) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
            if self._memory:
                _write_all(self._file, memoryview(self._memory))
                self._free_memory()
            _write_all(self._file, data)
        except OSError as problem:
            kind = StorageFull if takes_nothing(problem) else StorageError
            raise kind(f"the spool directory: {problem}") from problem

    def _free_memory(self) -> None:
        self._spool.give_back(len(self._memory))
        self._memory = bytearray()

    async def verify(self, checksum: Checksum) -> bool:
        if self._size <= _INLINE_BYTES:
            self._counts = self._has(checksum)
        else:
            self._counts = await asyncio.to_thread(self._has, checksum)
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
                    rest = self._writer.write(memoryview(self._read(at)))
                    if rest is not None:
                        await rest
            elif not self._is_over:
                self._size = 0
        finally:
            self._free_memory()
            if self._file is not None:
                self._file.close()
                self._file = None
            await self._writer.close(sync=sync, finishing=finishing)


def _write_all(file: IO[bytes], data: memoryview) -> None:
    while data.nbytes:
        data = data[os.write(file.fileno(), data) :]
