"""Joins of uploads: the bucket copies ranges of the parts' objects, and what is too small to copy goes through one buffer.

awaiting/<part>/<final>   a final that lists the part and is not joined yet
finals/<key>              the id of the final created for a key
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from tusd_py.locks.base import Fence, ensure_held
from tusd_py.storage.base import StorageError, Upload, UploadInfo, UploadNotFound
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.object_store import (
    MIN_PART_BYTES,
    ObjectHead,
    ObjectNotFound,
    Part,
    for_each,
)
from tusd_py.storage.s3.requests import ObjectStore
from tusd_py.storage.s3.translation import translated

_PIECE_BYTES = 1024 * 1024
_AT_ONCE = 4
"""Parts that are copied at a time."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of an object, from `start` up to but without `end`."""

    source: ObjectHead
    start: int
    end: int


def pieces(sources: Sequence[ObjectHead], start: int, end: int) -> Iterator[Piece]:
    """Yield what the range of the joined bytes consists of."""
    at = 0
    for source in sources:
        first, last = max(start - at, 0), min(end - at, source.size)
        if first < last:
            yield Piece(source, first, last)
        at += source.size
        if at >= end:
            return


Fill = Callable[[UploadInfo, Sequence[ObjectHead], Fence], Awaitable[None]]
"""Gives a final the bytes of these objects. Raises LeaseLost, StorageError, ObjectStoreError."""


class S3Joiner:
    """See `Joiner`."""

    def __init__(self, objects: ObjectStore, layout: Layout, fill: Fill) -> None:
        self._objects = objects
        self._layout = layout
        self._fill = fill

    async def join(self, final: UploadInfo, parts: Sequence[Upload], *, fence: Fence) -> None:
        with translated(f"joining {final.id}"):
            await self._fill(final, await self._sources(parts), fence)

    async def _sources(self, parts: Sequence[Upload]) -> list[ObjectHead]:
        distinct = {part.id: part for part in parts}
        heads: dict[str, ObjectHead] = {}
        for part in distinct.values():
            try:
                head = await self._objects.head(self._layout.data(part.info))
            except ObjectNotFound:
                if part.offset:
                    raise UploadNotFound(f"the part {part.id} is gone") from None
                continue
            if head.size != part.offset:
                raise StorageError(
                    f"the part {part.id} has {head.size} bytes, but its record says {part.offset}"
                )
            heads[part.id] = head
        return [heads[part.id] for part in parts if part.id in heads]

    # Who waits for whom

    async def await_parts(self, part_ids: Sequence[str], final_id: str) -> None:
        async def put(part_id: str) -> None:
            await self._objects.put(self._awaiting(part_id, final_id), b"")

        with translated(f"recording the parts of {final_id}"):
            await for_each(part_ids, put, at_once=_AT_ONCE)

    async def finals_awaiting(self, part_id: str) -> list[str]:
        with translated(f"reading the finals of {part_id}"):
            prefix = self._layout.directory("awaiting", part_id)
            return [
                self._layout.names(listed.key)[-1] async for listed in self._objects.each(prefix)
            ]

    async def forget_awaiting(self, part_ids: Sequence[str], final_id: str) -> None:
        async def delete(part_id: str) -> None:
            await self._objects.delete(self._awaiting(part_id, final_id))

        with translated(f"joining {final_id}"):
            await for_each(part_ids, delete, at_once=_AT_ONCE)

    def _awaiting(self, part_id: str, final_id: str) -> str:
        return self._layout.state("awaiting", part_id, final_id)

    async def remember_final(self, key: str, final_id: str, *, fence: Fence) -> None:
        with translated(f"creating {final_id}"):
            ensure_held(fence)
            await self._objects.put(self._layout.state("finals", key), final_id.encode())

    async def forget_final(self, key: str, final_id: str, *, fence: Fence) -> None:
        async def look() -> str:
            etag, found = await self._objects.read_text(self._layout.state("finals", key))
            ensure_held(fence)
            return etag if found == final_id else ""

        with translated("removing a final's key"):
            await self._objects.delete_if(self._layout.state("finals", key), look)

    async def recall_final(self, key: str) -> str | None:
        with translated("reading a final's key"):
            return (await self._objects.read_text(self._layout.state("finals", key)))[1]


async def assemble(
    objects: ObjectStore,
    key: str,
    upload_id: str,
    ranges: Sequence[tuple[int, int]],
    sources: Sequence[ObjectHead],
) -> list[Part]:
    """Store the joined bytes of `sources` as parts with these ranges. Raises ObjectStoreError."""
    slots = asyncio.Semaphore(_AT_ONCE)

    async def store(number: int, start: int, end: int) -> Part:
        async with slots:
            found = list(pieces(sources, start, end))
            # Copies have a least size, but for the last part; AWS copies ranges only out of objects that are longer than it.
            if (
                len(found) == 1
                and found[0].source.size > MIN_PART_BYTES
                and (end - start >= MIN_PART_BYTES or number == len(ranges))
            ):
                piece = found[0]
                return await objects.copy_part(
                    key, upload_id, number, piece.source, start=piece.start, end=piece.end
                )
            body = await gather_bytes(objects, found)
            return await objects.upload_part(key, upload_id, number, body)

    tasks = [
        asyncio.ensure_future(store(number, start, end))
        for number, (start, end) in enumerate(ranges, start=1)
    ]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def gather_bytes(objects: ObjectStore, found: Sequence[Piece]) -> bytearray:
    """Read pieces into one buffer. Raises ObjectStoreError."""
    body = bytearray()
    for piece in found:
        async with await objects.get(
            piece.source.key, start=piece.start, end=piece.end, if_match=piece.source.etag
        ) as stream:
            async for data in stream.chunks(_PIECE_BYTES):
                body += data
    return body
