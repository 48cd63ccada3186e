"""Free what a removed upload occupied: parts, object, tail, place. Another upload may have its id, or its key, since.

What that one needs stays, and so does what may be its own. An upload has its record, and its place, before it has anything
else: so if there is no such upload once something was seen, what was seen is the removed one's. Can be repeated at any time.
"""

from __future__ import annotations

import logging

from tusd_py.storage.base import is_random_id
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.object_store import (
    ObjectNotFound,
    ObjectStoreError,
    StoreUnavailable,
    other_bucket,
)
from tusd_py.storage.s3.places import Places
from tusd_py.storage.s3.record import TOKEN, Record, parse
from tusd_py.storage.s3.requests import ObjectStore

logger = logging.getLogger(__name__)


class Freeing:
    """Frees one removed upload. Methods raise ObjectStoreError.

    Attributes:
        is_complete: Nothing of the upload stays because of a later one with its id. Otherwise it is to be freed again later.
    """

    def __init__(
        self, objects: ObjectStore, layout: Layout, places: Places, record: Record
    ) -> None:
        self.is_complete = True
        self._objects = objects
        self._layout = layout
        self._places = places
        self._record = record
        self._id = record.info.id
        self._key = layout.data(record.info)

    async def run(self, *, keeps_object: bool) -> bool:
        """Free everything; return `is_complete`. keeps_object: the object outlives the upload."""
        location = self._record.info.location
        await self._abort_parts()
        if not keeps_object:
            await self._objects.delete_if(self._key, self._own_object)
        await self._objects.delete_if(self._layout.tail(self._id), self._tail)
        if location is not None:
            await self._places.leave(location, self._id, stays=self._is_key_needed)
        return self.is_complete

    async def _abort_parts(self) -> None:
        """Abort the multipart uploads. Raises StoreUnavailable.

        Goes on where the store does not permit it: what stays is in nobody's way.
        """
        record = self._record
        try:
            if record.multipart:
                await self._objects.abort(self._key, record.multipart)
            listed = await pending_of(self._objects, record, self._key)
            if not listed or not await self._began_them():
                return
            for upload_id in listed:
                await self._objects.abort(self._key, upload_id)
        except StoreUnavailable:
            raise
        except ObjectStoreError as problem:
            logger.warning("parts of %s stay in the bucket: %s", self._id, problem)

    async def _began_them(self) -> bool:
        """Whether no other upload can have begun what was listed at the key."""
        location = self._record.info.location
        # Free for others as soon as it is left.
        if location is not None and await self._places.holder(location) != self._id:
            return False
        is_needed = await self._is_key_needed()
        self.is_complete &= not is_needed
        return not is_needed

    async def _own_object(self) -> str:
        """The etag of the object; empty if there is none, or the key is another one's since.

        An id that a hook chose may look as if it were random, so none is taken for unique here.
        """
        record, location = self._record, self._record.info.location
        head = await self._objects.head_or_none(self._key)
        if head is None or not record.is_at(head):
            return ""
        if location is None:
            # A later upload replaces it, unless that is removed before.
            is_needed = await self._is_key_needed()
            self.is_complete &= not is_needed
            return "" if is_needed else head.etag
        # No other upload replaces an object at a place that was chosen for it. That of one that tusd began has no token.
        if record.before is None or await self._places.holder(location) == self._id:
            return head.etag
        return ""

    async def _tail(self) -> str:
        """The etag of the tail; empty if there is none, or a later upload is about to replace it."""
        etag = await own_tail(self._objects, self._layout, self._record)
        if etag and await self._later() is not None:
            self.is_complete = False
            return ""
        return etag

    async def _is_key_needed(self) -> bool:
        """Whether a later upload with the id has, or will have, its bytes at the key, or another one has that for its place."""
        later = await self._later()
        if later is not None:
            return later.info.location == self._record.info.location
        if self._record.info.location is not None or is_random_id(self._id):
            return False
        return await self._places.holder(self._id) not in {None, self._id}

    async def _later(self) -> Record | None:
        """The record of another upload that has the id since. Raises StorageError if it is not one of ours."""
        found = await stored_record(self._objects, self._layout, self._id)
        # Some stores show for a while what was deleted.
        return None if found is None or found.token == self._record.token else found


async def stored_record(objects: ObjectStore, layout: Layout, upload_id: str) -> Record | None:
    """The record of an upload; None if there is none. Raises ObjectStoreError, StorageError if it is not one of ours."""
    try:
        head, content = await objects.read(layout.record(upload_id))
    except ObjectNotFound:
        return None
    return parse(content, upload_id=upload_id, changed_at=head.modified_at, etag=head.etag)


async def own_tail(objects: ObjectStore, layout: Layout, record: Record) -> str:
    """The etag of the tail of an upload; empty if there is none, or another upload's."""
    head = await objects.head_or_none(layout.tail(record.info.id))
    if head is None or head.properties.metadata.get(TOKEN) != record.token:
        return ""
    return head.etag


async def pending_of(objects: ObjectStore, record: Record, key: str) -> list[str]:
    """The ids of the multipart uploads of an unfinished upload, also those without a record. Raises ObjectStoreError.

    Those at a place that was chosen for an upload are not told of where other programs may begin some, in another bucket, nor
    where tusd did: several of its uploads may have one place, and only ids tell whose a multipart upload is.
    """
    location = record.info.location
    is_shared = location is not None and (
        record.before is not None or other_bucket(location) is not None
    )
    if record.info.finished_at is not None or is_shared:
        return []
    return await objects.pending_uploads(key)
