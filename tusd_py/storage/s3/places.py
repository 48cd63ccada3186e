"""Where hooks may place uploads, and which upload has which place.

    taken/<location>    the id of the upload whose bytes are, or will be, at this location

An object comes to be when its upload is complete. Without the mark, two unfinished uploads could be given one place, and the
second would replace the first.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        """Take a place that has a mark, if its upload was never recorded."""
        head, found = await self._objects.read(mark, limit=2 * MAX_ID_BYTES)
        if found == holder:
            return
        record = self._layout.record(found.decode())
        taken = PlaceTaken(f"{location} is taken by {found.decode()}")
        if await self._exists(record):
            raise taken
        # Of a creation that was interrupted, or that has not come to its record yet.
        etag = await self._put(mark, holder, if_match=head.etag)
        if await self._exists(record):
            await self._put(mark, found, if_match=etag)
            raise taken

    async def holder(self, location: str) -> str | None:
        """Return the upload that has a place; None if it is free, or has the id of its upload."""
        try:
            return (await self._objects.read(self._mark(location), limit=2 * MAX_ID_BYTES))[
                1
            ].decode()
        except ObjectNotFound:
            return None

    async def leave(self, location: str, upload_id: str) -> None:
        """Free the place of a removed upload."""
        if await self.holder(location) == upload_id:
            await self._objects.delete(self._mark(location))

    async def tidy(self, before: float) -> int:
        """Free the places of uploads that were never recorded, and return how many.

        before: look only at marks that are older, in seconds since the epoch.
        """
        freed = 0
        async for page in self._objects.list(self._layout.directory(_DIRECTORY)):
            for listed in page:
                if listed.modified_at >= before:
                    continue
                location = self._layout.names(listed.key)[-1]
                upload_id = await self.holder(location)
                if upload_id and not await self._exists(self._layout.record(upload_id)):
                    await self._objects.delete(listed.key)
                    freed += 1
        return freed

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
