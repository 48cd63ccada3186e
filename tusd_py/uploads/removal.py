"""Remove an upload: record the event, remove what the store has of it, publish the event.

For clients (DELETE), operators, and creations that failed. Not for: removing what is due (`expiring.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress

from tusd_py.auth.principal import Action
from tusd_py.events.model import Event, EventType, HookResponse, RequestView, UploadView
from tusd_py.events.outbox_record import id_of
from tusd_py.locks.base import UNFENCED, Fence, Lease
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import (
    BytesMissing,
    RecordUnreadable,
    RemovalEvent,
    StorageError,
    UnpublishedRemoval,
    Upload,
    UploadDamaged,
)
from tusd_py.uploads.abandoned_events import OUTDATED_SECONDS
from tusd_py.uploads.operation import Operation

logger = logging.getLogger(__name__)


class Remover(Operation):
    """Removes uploads of one store."""

    async def terminate(self, upload_id: str, request: RequestView) -> HookResponse | None:
        """Remove an upload, finished or not, after ending a request that is writing to it (DELETE).

        Returns the response that hooks want. Raises ProtocolError.
        """
        await self._guard.admit_change()
        if not self._policy.termination:
            raise errors.method_not_allowed("HEAD, PATCH, GET, OPTIONS")
        async with self._guard.exclusive(upload_id, request, Action.DELETE) as held:
            info = held.upload.info
            view = UploadView.of(info, held.upload.offset, self._store.path_of(info))
            response = await self._hooks.decide(Event(EventType.PRE_TERMINATE, view, request))
            await self.remove(held.upload, EventType.POST_TERMINATE, request, held.lease)
            self._counters.uploads_terminated += 1
        return response

    async def discard(self, upload_id: str, *, unreadable: bool = False) -> bool:
        """Remove an upload for the operator, finished or not; return False if its lock is held.

        Removes damaged uploads and those without bytes as well. unreadable: remove also an upload whose record cannot be read,
        with the bytes under its id, and publish nothing, as only the record says of what. Raises StorageError.
        """
        async with self._guard.if_free(upload_id) as lease:
            if lease is not None:
                try:
                    upload = await self._access.load(upload_id)
                except (UploadDamaged, BytesMissing) as problem:
                    upload = problem.upload
                except RecordUnreadable as problem:
                    if not unreadable:
                        raise
                    await self._store.remove(upload_id, fence=lease.fence)
                    self._due_marks.forget(upload_id)
                    logger.warning("removed for the operator: %s", problem)
                    return True
                await self.remove(upload, EventType.POST_TERMINATE, RequestView(), lease)
                self._counters.uploads_terminated += 1
                return True
        return False

    async def remove(
        self,
        upload: Upload,
        event_type: EventType,
        request: RequestView,
        lease: Lease,
        *,
        keep_tombstone: bool = True,
    ) -> None:
        """Remove an upload whose lock is held, and publish that. Raises StorageError, LeaseLost.

        keep_tombstone: False if no client was told of the upload.
        """
        began = self._expiry.now()
        await self._publisher.withdraw_stale(upload, lease.fence)
        unpublished = await self._publisher.record_removals(
            event_type, [upload], request, {upload.id: lease.fence}
        )
        await self._store.remove(
            upload.id,
            fence=lease.fence,
            event_id=id_of(event_type, upload.info),
            keep_tombstone=keep_tombstone,
            unpublished=unpublished.get(upload.id),
        )
        await self.record_late(
            event_type, [upload], unpublished, request, since=began, keep_tombstone=keep_tombstone
        )
        self._due_marks.forget(upload.id)
        self._quotas.removed(upload.info)
        self._publisher.publish(event_type, upload, request)

    async def take_back(self, upload: Upload, fence: Fence) -> None:
        """Remove an upload whose creation failed and was not published. Raises LeaseLost if another holder has it by now."""
        self._due_marks.forget(upload.id)
        # It may have been recorded although that failed, as when only the response of a bucket was lost.
        with suppress(StorageError):
            await self._publisher.withdraw(EventType.POST_CREATE, upload, fence)
        with suppress(StorageError):
            await self._store.remove(upload.id, fence=fence, keep_tombstone=False)

    # Events that are not in the outbox after the removal

    async def record_late(
        self,
        event_type: EventType,
        uploads: Sequence[Upload],
        unpublished: Mapping[str, RemovalEvent],
        request: RequestView,
        *,
        since: float,
        keep_tombstone: bool = True,
    ) -> None:
        """Record the events of removals that could not be recorded before, because the disk was full, or may be dropped since.

        unpublished: those that could not be recorded, by upload. since: when the others were recorded.
        """
        is_outdated = self._expiry.now() - since > OUTDATED_SECONDS
        for upload in uploads:
            if event := unpublished.get(upload.id):
                # Without a fence: the removal has happened, even if another process holds the lock now.
                await self._publish_late(
                    UnpublishedRemoval(upload, event, keep_tombstone), request, UNFENCED
                )
            elif is_outdated:
                await self._publisher.record_again(event_type, upload, request)

    async def _publish_late(
        self, removal: UnpublishedRemoval, request: RequestView, fence: Fence
    ) -> None:
        try:
            await self._publisher.record_late(removal, request, fence)
            await self._store.forget_removal(removal, fence=fence)
        except StorageError as problem:
            logger.warning("the removal of %s is published later: %s", removal.upload.id, problem)
        else:
            self._publisher.enqueue(removal.upload.id)

    async def recover_removals(self) -> None:
        """Publish removals whose events could not be recorded, or whose server died in between. Raises StorageError."""
        if not self._publisher.delivers:
            return
        for removal in await self._store.unpublished_removals():
            try:
                # One that is locked: its holder does it, or the next attempt.
                async with self._guard.if_free(removal.upload.id) as lease:
                    # Its holder may have published it meanwhile.
                    if lease is not None and await self._store.finish_removal(
                        removal, fence=lease.fence
                    ):
                        await self._publish_late(removal, RequestView(), lease.fence)
            except ProtocolError:
                return
