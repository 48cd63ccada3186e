"""The bytes of an upload, open for reading."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator

from tusd_py.storage.base import StorageError
from tusd_py.storage.errors import translated

_PIECE_BYTES = 256 * 1024


class FileReader:
    """See `Reader`. descriptor: of the data file; the reader closes it."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    async def stream(self, start: int, count: int) -> AsyncGenerator[bytes, None]:
        while count:
            with translated("reading"):
                piece = await asyncio.to_thread(
                    os.pread, self.descriptor, min(_PIECE_BYTES, count), start
                )
            if not piece:
                raise StorageError("the file ended before the bytes that were promised")
            start += len(piece)
            count -= len(piece)
            yield piece

    async def reserve(self) -> None: ...

    async def url(self, *, seconds: int, content_type: str, disposition: str) -> None:
        """See `Reader`. A file of this machine has none."""

    def close(self) -> None:
        os.close(self.descriptor)
