"""The bytes of a finished upload, streamed from the bucket."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from tusd_py.storage.base import StorageError
from tusd_py.storage.s3.object_store import ObjectHead, ObjectStore, StoreUnavailable
from tusd_py.storage.s3.translation import translated

_PIECE_BYTES = 256 * 1024


class S3Reader:
    """See `Reader`. head: the object, which has to be the same one still when it is read. on_close: called once."""

    def __init__(
        self, objects: ObjectStore, head: ObjectHead, on_close: Callable[[], None]
    ) -> None:
        self._objects = objects
        self._head = head
        self._on_close: Callable[[], None] | None = on_close

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

    def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()
