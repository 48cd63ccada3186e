"""Where hooks may place uploads, and which upload has which place.

    taken/<location>    the id of the upload whose bytes are, or will be, at this location

An object comes to be when its upload is complete. Without the mark, two unfinished uploads could be given one place, and the
second would replace the first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from tusd_py.locks.base import Fence, ensure_held
from tusd_py.storage.base import MAX_ID_BYTES, LocationRefused, PlaceTaken, is_valid_id
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.object_store import TEXT, ObjectNotFound, PreconditionFailed
from tusd_py.storage.s3.requests import ObjectStore

_DIRECTORY = "taken"

Exclusively = Callable[[str, Callable[[Fence], Awaitable[bool]]], Awaitable[bool]]
"""`await exclusively(upload_id, change)` makes a change under the lock of an upload; False if it is held."""


class Places:
    """The places of one bucket, and those that the operator allows besides.

    allowed: buckets, or `bucket/prefix`.
    """

    def __init__(
        self, objects: ObjectStore, layout: Layout, bucket: str, allowed: Sequence[str]
    ) -> None:
        self._objects = objects
        self._layout = layout
        self._bucket = bucket
        self._allowed = [tuple(each.partition("/")[::2]) for each in allowed]

    @property
    def probes(self) -> list[str]:
        """A key in each place that is allowed besides, to try it out."""
        return [f"s3://{bucket}/{prefix}.tusd-py-probe" for bucket, prefix in self._allowed]

    def location(self, upload_id: str, *, bucket: str, prefix: str, key: str) -> str:
        """See `Store.locate`."""
        bucket = bucket or self._bucket
        own = self._layout.object_prefix if bucket == self._bucket else ""
        key = key or (prefix or own) + upload_id
        if bucket == self._bucket and key.startswith(own) and is_valid_id(key[len(own) :]):
            return key[len(own) :]
        for allowed, beginning in self._allowed:
            if bucket == allowed and key.startswith(beginning) and is_valid_id(key):
                return f"s3://{bucket}/{key}"
        raise LocationRefused(
            f"s3://{bucket}/{key} is neither below --s3-object-prefix of --s3-bucket nor allowed by --s3-allowed-locations, "
            f"or has segments that are empty or begin with a dot, an ending of ours, or more than {MAX_ID_BYTES} bytes"
        )

    async def take(self, location: str, upload_id: str) -> None:
        """Give a place to an upload that is about to be recorded. Raises PlaceTaken, ObjectStoreError."""
        mark, holder = self._mark(location), upload_id.encode()
        try:
            await self._objects.put(mark, holder, TEXT, if_absent=True)
        except PreconditionFailed:
            try:
                await self._take_from_other(location, mark, holder)
            except (PreconditionFailed, ObjectNotFound):
                raise PlaceTaken(f"{location} is being taken or left") from None

    async def _take_from_other(self, location: str, mark: str, holder: bytes) -> None:
        """Take a place that has a mark, if its upload has no record, and is not being removed just now."""
        head, found = await self._objects.read(mark)
        if found == holder:
            return
        taken = PlaceTaken(f"{location} is taken by {found.decode()}")
        if await self._is_needed(found.decode()):
            raise taken
        # Of a creation that was interrupted, or that has not come to its record yet.
        etag = await self._objects.put(mark, holder, TEXT, if_match=head.etag)
        if await self._has_record(found.decode()):
            await self._objects.put(mark, found, TEXT, if_match=etag)
            raise taken

    async def holder(self, location: str) -> str | None:
        """Return the upload that has a place; None if it is free, or has the id of its upload."""
        return (await self._objects.read_text(self._mark(location)))[1]

    async def leave(
        self,
        location: str,
        upload_id: str,
        *,
        stays: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Free the place of a removed upload.

        stays: asked after the mark was seen, whether it is that of a later upload with the same id.
        """
        mark = self._mark(location)

        async def look() -> str:
            etag, holder = await self._objects.read_text(mark)
            return "" if holder != upload_id or (stays is not None and await stays()) else etag

        await self._objects.delete_if(mark, look)

    async def tidy(self, before: float, exclusively: Exclusively) -> int:
        """Free the places of uploads that were never recorded, or are gone, and return how many.

        before: look only at marks that are older, in seconds since the epoch. exclusively: holds the lock of their uploads.
        """
        freed = 0
        async for listed in self._objects.each(self._layout.directory(_DIRECTORY), before=before):
            upload_id = (await self._objects.read_text(listed.key))[1]
            if upload_id and not await self._is_needed(upload_id):
                free = partial(self._free_mark, listed.key, upload_id)
                freed += await exclusively(upload_id, free)
        return freed

    async def _free_mark(self, mark: str, upload_id: str, fence: Fence) -> bool:
        """Remove a mark, if it names this upload, which does not need it. Raises LeaseLost."""

        async def look() -> str:
            etag, holder = await self._objects.read_text(mark)
            if holder != upload_id or await self._is_needed(upload_id):
                return ""
            ensure_held(fence)
            return etag

        return await self._objects.delete_if(mark, look)

    async def _is_needed(self, upload_id: str) -> bool:
        """Whether an upload has a record, or is being removed, so that its mark stays."""
        return await self._has_record(upload_id) or await self._is_being_removed(upload_id)

    async def _is_being_removed(self, upload_id: str) -> bool:
        """Whether an upload without a record may still have bytes at its place, or a request to remove them is on its way.

        HTTP clients repeat some requests without telling, and such a repeat would remove the next upload's bytes.
        """
        async for _ in self._objects.each(self._layout.directory("freeing", upload_id)):
            return True
        return False

    def _mark(self, location: str) -> str:
        return self._layout.state(_DIRECTORY, location)

    async def _has_record(self, upload_id: str) -> bool:
        return await self._objects.head_or_none(self._layout.record(upload_id)) is not None
