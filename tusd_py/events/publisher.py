"""Publish events to the hooks in this process, and through the outbox to the hooks that workers call.

An event for workers is recorded in the outbox before it happens, so that it survives a crash in between. The worker checks
whether the event did happen before it delivers it, and an operation that is tried again yields the same event id. Events that
no hook listens to are not recorded. Not for: calling hooks (`hooks.py`, `tusd_workers.delivery`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from tusd_py import logs
from tusd_py.events import outbox_record
from tusd_py.events.hooks import Hooks
from tusd_py.events.model import Event, EventType, RequestView, UploadView
from tusd_py.events.outbox_record import OutboxRecord, id_of
from tusd_py.locks.base import UNFENCED, Fence, LeaseLost
from tusd_py.storage.base import (
    Outbox,
    RemovalEvent,
    StorageError,
    UnpublishedRemoval,
    Upload,
    UploadInfo,
)

if TYPE_CHECKING:
    from tusd_py.jobs.relay import Relay

logger = logging.getLogger(__name__)

_WARN_AFTER_SECONDS = 900.0
"""Age of an undelivered event from which on a warning is logged."""
_REMOVALS = (EventType.POST_TERMINATE, EventType.POST_EXPIRE)
_LOGGED = {
    EventType.POST_CREATE: "upload created",
    EventType.POST_FINISH: "upload finished",
    EventType.POST_TERMINATE: "upload terminated",
    EventType.POST_EXPIRE: "upload expired",
}
"""The events that are published, and their names in the log."""


class EventPublisher:
    """Publishes events of uploads.

    outbox: for the events that workers deliver; None if they deliver none. durable: whether an event must survive a power cut
    once the client has its response. path_of: returns where hooks find the bytes of an upload.

    Attributes:
        outbox: As above.
        relay: Queues the deliveries of the outbox for workers; without one, a worker's scan finds the events.
    """

    def __init__(
        self,
        hooks: Hooks,
        outbox: Outbox | None = None,
        *,
        durable: bool = True,
        path_of: Callable[[UploadInfo], str] | None = None,
    ) -> None:
        self.relay: Relay | None = None
        self._hooks = hooks
        self.outbox = outbox
        self._durable = durable
        self._path_of = path_of

    async def record(
        self, event_type: EventType, upload: Upload, request: RequestView, fence: Fence
    ) -> None:
        """Record an event that is about to happen in the outbox, under the upload's lock. Raises StorageError, LeaseLost."""
        if self.outbox is None:
            return
        hooks = self._hooks.delivered_to(event_type)
        if not hooks:
            return
        event = self._event(event_type, upload, outbox_record.without_secrets(request))
        content = outbox_record.serialize(OutboxRecord(event, upload.info.created_at, hooks))
        sync = self._durable and event_type is EventType.POST_FINISH
        await self.outbox.keep(upload.id, event.id, content, sync=sync, fence=fence)

    async def record_again(
        self, event_type: EventType, upload: Upload, request: RequestView
    ) -> None:
        """Record an event that has happened, unless it is in the outbox: it may have been dropped if it took long to happen.

        One that was delivered meanwhile is delivered again.
        """
        if self.outbox is None or not self._hooks.delivered_to(event_type):
            return
        event_id = id_of(event_type, upload.info)
        try:
            if all(kept.event_id != event_id for kept in await self.outbox.of(upload.id)):
                # Without a fence: it has happened, even if another process holds the lock now.
                await self.record(event_type, upload, request, UNFENCED)
                await self._sync_removals(
                    event_type, {upload.id} if event_type in _REMOVALS else ()
                )
        except StorageError as problem:
            logger.error("%s of %s may have been dropped: %s", event_type, upload.id, problem)

    def publish(self, event_type: EventType, upload: Upload, request: RequestView) -> None:
        """Publish an event that has happened: log it, call hooks in the background, and queue the delivery by workers."""
        _log(_LOGGED[event_type], upload, request)
        if self._hooks.wants(event_type):
            self._hooks.notify(self._event(event_type, upload, request))
        if self.relay is not None and self._hooks.delivered_to(event_type):
            self.relay.enqueue(upload.id)

    async def scan(self) -> None:
        """Queue the events in the outbox whose delivery was lost, and warn if events wait for long."""
        if self.outbox is None:
            return
        try:
            found = 0 if self.relay is None else await self.relay.scan(self.outbox)
            counts = await self.outbox.counts()
        except StorageError as problem:
            logger.warning("the outbox cannot be read: %s", problem)
            return
        if found:
            logs.event(logger, logging.INFO, "events found", uploads=found)
        age = 0.0 if counts.oldest is None else time.time() - counts.oldest
        if age > _WARN_AFTER_SECONDS:
            logs.event(
                logger,
                logging.WARNING,
                "events wait",
                message=f"{counts.waiting} events wait to be delivered, the first of them for {age:.0f} s: "
                "see tusd-py events list for the reason, tusd-py status for the workers",
                events=counts.waiting,
                oldest=round(age),
            )

    async def withdraw(self, event_type: EventType, upload: Upload, fence: Fence) -> None:
        """Remove an event that did not happen from the outbox, under the upload's lock. Raises StorageError, LeaseLost."""
        await self._withdraw(upload, {id_of(event_type, upload.info)}, fence)

    async def withdraw_stale(self, upload: Upload, fence: Fence) -> None:
        """Withdraw what did not happen to an upload that is about to be removed. Raises StorageError, LeaseLost.

        After the removal, a worker may not find out that it did not happen; so without this there is no removal.
        """
        stale = {id_of(each, upload.info) for each in _REMOVALS}
        if not upload.finished:
            stale.add(id_of(EventType.POST_FINISH, upload.info))
        await self._withdraw(upload, stale, fence)

    @property
    def delivers(self) -> bool:
        """Whether workers deliver any events."""
        return self.outbox is not None and self._hooks.delivers

    def enqueue(self, upload_id: str) -> None:
        """Queue the delivery of an upload's events. What is lost is found by a later scan."""
        if self.relay is not None:
            self.relay.enqueue(upload_id)

    async def record_removals(
        self,
        event_type: EventType,
        uploads: Sequence[Upload],
        request: RequestView,
        fences: Mapping[str, Fence],
    ) -> dict[str, RemovalEvent]:
        """Record the events of uploads that are about to be removed, under their locks, after `withdraw_stale`. fences: by id.

        Returns, by id, the events that could not be recorded. The removal goes on all the same: on a full disk, it makes the
        space to record them.
        """
        recorded = {
            each.id
            for each in uploads
            if await self._record_removal(event_type, each, request, fences[each.id])
        }
        try:
            await self._sync_removals(event_type, recorded)
        except StorageError as problem:
            logger.warning("%s of removed uploads is recorded after it: %s", event_type, problem)
            recorded = set()
        return {
            each.id: RemovalEvent(id_of(event_type, each.info), each.offset)
            for each in uploads
            if each.id not in recorded
        }

    async def _sync_removals(self, event_type: EventType, upload_ids: Collection[str]) -> None:
        """Make recorded events durable, as after a power cut nothing else tells of a removed upload. Raises StorageError."""
        if self.outbox is None or not self._durable or not upload_ids:
            return
        if self._hooks.delivered_to(event_type):
            await self.outbox.sync(list(upload_ids))

    async def record_late(
        self, removal: UnpublishedRemoval, request: RequestView, fence: Fence
    ) -> None:
        """Record the event of a removal after it, if its type is known. Raises StorageError, LeaseLost."""
        info = removal.upload.info
        for event_type in _REMOVALS:
            if id_of(event_type, info) == removal.event.event_id:
                await self.record(event_type, removal.upload, request, fence)
                await self._sync_removals(event_type, {info.id})

    async def _record_removal(
        self, event_type: EventType, upload: Upload, request: RequestView, fence: Fence
    ) -> bool:
        """Record the event of a removal; False if that failed and it must be recorded later."""
        try:
            await self.record(event_type, upload, request, fence)
        except LeaseLost:
            # The removal fails as well, as it needs the same fence.
            return True
        except StorageError as problem:
            logger.warning("%s of %s is recorded after it: %s", event_type, upload.id, problem)
            return False
        return True

    async def _withdraw(self, upload: Upload, stale: AbstractSet[str], fence: Fence) -> None:
        """Remove the events with these ids from the outbox."""
        if self.outbox is None or not self._hooks.delivers:
            return
        for kept in await self.outbox.of(upload.id):
            if kept.event_id in stale:
                await self.outbox.forget(kept, fence=fence)

    def _event(self, event_type: EventType, upload: Upload, request: RequestView) -> Event:
        path = self._path_of(upload.info) if self._path_of is not None else ""
        view = UploadView.of(upload.info, upload.offset, path)
        return Event(event_type, view, request, id=id_of(event_type, upload.info))


def _log(name: str, upload: Upload, request: RequestView) -> None:
    """Log an event of an upload; of a finish also how long the upload took, and its average pace."""
    info = upload.info
    seconds = pace = None
    if info.finished_at is not None and name == _LOGGED[EventType.POST_FINISH]:
        seconds = round(max(info.finished_at - info.created_at, 0.0), 3)
        pace = round(upload.offset / seconds / 1e6, 2) if seconds else None
    logs.event(
        logger,
        logging.INFO,
        name,
        upload=info.id,
        size=upload.length,
        offset=upload.offset if info.finished_at is None else None,
        seconds=seconds,
        mb_per_s=pace,
        owner=info.owner or None,
        client=request.client or None,
    )
