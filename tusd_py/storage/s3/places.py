"""Where hooks may place uploads, and which upload has which place.

    taken/<location>    the id of the upload whose bytes are, or will be, at this location

An object comes to be when its upload is complete. Without the mark, two unfinished uploads could be given one place, and the
second would replace the first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial

from tusd_py.locks.base import Fence, LeaseLost
from tusd_py.storage.base import MAX_ID_BYTES, LocationRefused, PlaceTaken, is_valid_id
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.object_store import (
    ObjectKind,
    ObjectNotFound,
    ObjectStore,
    PreconditionFailed,
    Properties,
)

_DIRECTORY = "taken"
_TEXT = Properties("text/plain")


IfFree = Callable[[str], AbstractAsyncContextManager[Fence | None]]
"""`async with if_free(upload_id) as fence:` holds the lock of an upload; the fence is None if somebody else does."""


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
            await self._put(mark, holder, if_absent=True)
        except PreconditionFailed:
            try:
                await self._take_from_other(location, mark, holder)
            except (PreconditionFailed, ObjectNotFound):
                raise PlaceTaken(f"{location} is being taken or left") from None

    async def _take_from_other(self, location: str, mark: str, holder: bytes) -> None:
        """Take a place that has a mark, if its upload has no record, and is not being removed just now."""
        head, found = await self._objects.read(mark, limit=2 * MAX_ID_BYTES)
        if found == holder:
            return
        record = self._layout.record(found.decode())
        taken = PlaceTaken(f"{location} is taken by {found.decode()}")
        if await self._exists(record) or await self._is_being_removed(found.decode()):
            raise taken
        # Of a creation that was interrupted, or that has not come to its record yet.
        etag = await self._put(mark, holder, if_match=head.etag)
        if await self._exists(record):
            await self._put(mark, found, if_match=etag)
            raise taken

    async def holder(self, location: str) -> str | None:
        """Return the upload that has a place; None if it is free, or has the id of its upload."""
        return (await self._seen(self._mark(location)))[1]

    async def _seen(self, mark: str) -> tuple[str, str | None]:
        """The etag of a mark, and the upload that it names; None if there is no mark."""
        try:
            head, content = await self._objects.read(mark, limit=2 * MAX_ID_BYTES)
        except ObjectNotFound:
            return "", None
        return head.etag, content.decode()

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
            etag, holder = await self._seen(mark)
            return "" if holder != upload_id or (stays is not None and await stays()) else etag

        await self._objects.delete_if(mark, look)

    async def tidy(self, before: float, if_free: IfFree) -> int:
        """Free the places of uploads that were never recorded, or are gone, and return how many.

        before: look only at marks that are older, in seconds since the epoch. if_free: holds the lock of their uploads.
        """
        freed = 0
        async for page in self._objects.list(self._layout.directory(_DIRECTORY)):
            for listed in page:
                if listed.modified_at >= before:
                    continue
                upload_id = (await self._seen(listed.key))[1]
                if not upload_id or await self._is_needed(upload_id):
                    continue
                with suppress(LeaseLost):
                    async with if_free(upload_id) as fence:
                        if fence is not None:
                            look = partial(self._left_mark, listed.key, upload_id, fence)
                            freed += await self._objects.delete_if(listed.key, look)
        return freed

    async def _left_mark(self, mark: str, upload_id: str, fence: Fence) -> str:
        """The etag of a mark that names this upload, which does not need it; empty for others. Raises LeaseLost."""
        etag, holder = await self._seen(mark)
        if holder != upload_id or await self._is_needed(upload_id):
            return ""
        with fence():
            pass
        return etag

    async def _is_needed(self, upload_id: str) -> bool:
        """Whether an upload has a record, or is being removed, so that its mark stays."""
        if await self._exists(self._layout.record(upload_id)):
            return True
        return await self._is_being_removed(upload_id)

    async def _is_being_removed(self, upload_id: str) -> bool:
        """Whether an upload without a record may still have bytes at its place, or a request to remove them is on its way.

        HTTP clients repeat some requests without telling, and such a repeat would remove the next upload's bytes.
        """
        async for _ in unfreed(self._objects, self._layout, upload_id):
            return True
        return False

    def _mark(self, location: str) -> str:
        return self._layout.state(_DIRECTORY, location)

    async def _exists(self, key: str) -> bool:
        try:
            await self._objects.head(key)
        except ObjectNotFound:
            return False
        return True

    async def _put(
        self, key: str, content: bytes, *, if_absent: bool = False, if_match: str = ""
    ) -> str:
        return await self._objects.put(
            key, content, _TEXT, kind=ObjectKind.RECORD, if_absent=if_absent, if_match=if_match
        )


async def unfreed(objects: ObjectStore, layout: Layout, upload_id: str) -> AsyncIterator[str]:
    """Yield the keys of what is to be freed of removed uploads with this id, see `removal.py`. Raises ObjectStoreError."""
    async for page in objects.list(layout.directory("freeing", upload_id)):
        for listed in page:
            yield listed.key
    old = layout.state("removing", upload_id)
    async for page in objects.list(old):
        for listed in page:
            if listed.key == old or listed.key.startswith(f"{old}/"):
                yield listed.key
