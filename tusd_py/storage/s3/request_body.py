"""The body of a request to the object store: read from the buffer that the bytes are in, without a copy."""

from __future__ import annotations

import io
import os
from collections.abc import Callable


class RequestBody(io.BytesIO):
    """A file that reads from `data`, which must not change while a request is made.

    A `BytesIO`, as the SDK's HTTP client sends such a file piece by piece, and lets other tasks run in between. What is read
    are views. on_move: called with the position, whenever that may have changed. waits_to_be_asked: it is sent once the store
    asks for it.
    """

    def __init__(
        self,
        data: bytes | bytearray | memoryview,
        on_move: Callable[[int], None] = lambda _at: None,
        *,
        waits_to_be_asked: bool = False,
    ) -> None:
        super().__init__()
        self.waits_to_be_asked = waits_to_be_asked
        self._on_move = on_move
        self._data = memoryview(data)
        self._at = 0

    def read(self, size: int | None = -1, /) -> bytes:
        end = self._data.nbytes if size is None or size < 0 else self._at + size
        piece = self._data[self._at : end]
        self._at += piece.nbytes
        self._on_move(self._at)
        return piece  # type: ignore[return-value]

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._data.nbytes}[whence]
        self._at = max(0, start + offset)
        self._on_move(self._at)
        return self._at

    def tell(self) -> int:
        return self._at

    def getbuffer(self) -> memoryview:
        return self._data[:]
