"""The bytes of a finished upload, streamed from the bucket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from tusd_py.storage.base import StorageError
from tusd_py.storage.s3.object_store import ObjectHead, StoreUnavailable
from tusd_py.storage.s3.requests import ObjectStore
from tusd_py.storage.s3.translation import translated

_PIECE_BYTES = 256 * 1024
MOST_CLIENTS = 256
"""Clients to which a process sends bytes at a time, however slowly they read: each takes up to a MiB of memory."""
_RESERVE_SECONDS = 10.0
"""How long one more waits."""


class S3Reader:
    """See `Reader`. head: the object, which has to be the same one still when it is read. clients: how many more are served."""

    def __init__(self, objects: ObjectStore, head: ObjectHead, clients: asyncio.Semaphore) -> None:
        self._objects = objects
        self._head = head
        self._clients = clients
        self._is_reserved = False

    @property
    def descriptor(self) -> int | None:
        return None

    async def stream(self, start: int, count: int) -> AsyncGenerator[bytes, None]:
        key, at, end = self._head.key, start, start + count
        while at < end:
            began = at
            with translated(f"reading {key}"):
                try:
                    async with await self._objects.get(
                        key, start=at, end=end, if_match=self._head.etag
                    ) as stream:
                        async for data in stream.chunks(_PIECE_BYTES):
                            at += len(data)
                            yield data
                except StoreUnavailable:
                    # Cut in the middle of a long response: it goes on from there, as long as bytes come.
                    if at == began:
                        raise
            if at == began:
                raise StorageError(f"{key} has fewer bytes than {end}")

    async def url(self, *, seconds: int, content_type: str, disposition: str) -> str:
        with translated(f"signing a URL of {self._head.key}"):
            return await self._objects.presigned_get(
                self._head.key, seconds=seconds, content_type=content_type, disposition=disposition
            )

    async def reserve(self) -> None:
        with translated(f"reading {self._head.key}"):
            try:
                async with asyncio.timeout(_RESERVE_SECONDS):
                    await self._clients.acquire()
            except TimeoutError:
                raise StoreUnavailable(f"{MOST_CLIENTS} clients are being served") from None
        self._is_reserved = True

    def close(self) -> None:
        if self._is_reserved:
            self._is_reserved = False
            self._clients.release()
