"""The bytes of a finished upload, streamed from the bucket."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from tusd_py.storage.base import StorageError
from tusd_py.storage.s3.object_store import ObjectHead, ObjectStore
from tusd_py.storage.s3.translation import translated

_PIECE_BYTES = 256 * 1024


class S3Reader:
    """See `Reader`. head: the object, which has to be the same one still when it is read."""

    def __init__(self, objects: ObjectStore, head: ObjectHead) -> None:
        self._objects = objects
        self._head = head

    @property
    def descriptor(self) -> int | None:
        return None

    async def stream(self, start: int, count: int) -> AsyncGenerator[bytes, None]:
        if not count:
            return
        key, sent = self._head.key, 0
        with translated(f"reading {key}"):
            async with await self._objects.get(
                key, start=start, end=start + count, if_match=self._head.etag
            ) as stream:
                async for data in stream.chunks(_PIECE_BYTES):
                    sent += len(data)
                    yield data
        if sent != count:
            raise StorageError(f"{key} has fewer bytes than {start + count}")

    def close(self) -> None:
        """Nothing is held between two streams."""
