"""What happens to uploads, announced: to the hooks in this process, and to those that workers tell, by way of the outbox.

What workers have to tell is written down before it happens, so that whoever dies in between leaves a trace of it: whoever
delivers looks whether it did happen, and a thing that is tried again has the same id. Where no hook wants an event, nothing
is written and nobody is asked. Not for: telling (`events.py` here, `tusd_workers.delivery` there).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from tusd_py import logs
from tusd_py.events import outbox_record
from tusd_py.events.hooks import Hooks
from tusd_py.events.model import DELIVERED, Event, EventType, RequestView, UploadView
from tusd_py.events.outbox_record import OutboxRecord, id_of
from tusd_py.locks.base import Fence, LeaseLost
from tusd_py.storage.base import Outbox, RemovalEvent, StorageError, UnpublishedRemoval, Upload

logger = logging.getLogger(__name__)

_LONG = 900.0
"""Seconds that an event waits before it is worth a warning."""
_REMOVALS = (EventType.POST_TERMINATE, EventType.POST_EXPIRE)


class Relay(Protocol):
    """Who gets workers to look at the outbox."""

    async def start(self) -> None:
        """From now on it does."""

    async def stop(self) -> None:
        """Not any more. What it could not say is found by the sweep."""

    def enqueue(self, upload_id: str, /) -> None:
        """Events of this upload are to be told. Returns at once; should it be lost, the sweep makes up for it."""

    async def scan(self, outbox: Outbox) -> int:
        """Sees that there is somebody to tell everything that waits; how many uploads were passed on."""


class NoRelay:
    """Nobody; the sweep finds what is to be told."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def enqueue(self, _upload_id: str, /) -> None: ...

    async def scan(self, _outbox: Outbox) -> int:
        return 0


class EventPublisher:
    """Announces events of uploads.

    outbox: where those are written down that workers tell; None if none are. durable: whether what was answered to a client
    has to outlast a power cut.
    """

    def __init__(self, hooks: Hooks, outbox: Outbox | None = None, *, durable: bool = True) -> None:
        self.relay: Relay = NoRelay()
        self._hooks = hooks
        self._outbox = outbox
        self._durable = durable

    async def record(
        self, event_type: EventType, upload: Upload, request: RequestView, fence: Fence
    ) -> None:
        """Writes down what is about to happen to an upload, for workers to tell. Under its lock.

        Raises StorageError, LeaseLost.
        """
        if self._outbox is None:
            return
        hooks = self._hooks.delivered_to(event_type)
        if not hooks:
            return
        event = _event(event_type, upload, outbox_record.without_secrets(request))
        content = outbox_record.serialize(OutboxRecord(event, upload.info.created_at, hooks))
        sync = self._durable and event_type is EventType.POST_FINISH
        await self._outbox.keep(upload.id, event.id, content, sync=sync, fence=fence)

    def publish(self, event_type: EventType, upload: Upload, request: RequestView) -> None:
        """It has happened: whoever wants to know of it is told in the background."""
        if self._hooks.wants(event_type):
            self._hooks.tell(_event(event_type, upload, request))
        if self._outbox is not None and self._hooks.delivered_to(event_type):
            self.relay.enqueue(upload.id)

    async def scan(self) -> None:
        """Sees that everything that waits is told, whatever became of those who were to see to it."""
        if self._outbox is None:
            return
        try:
            found = await self.relay.scan(self._outbox)
            counts = await self._outbox.counts()
        except StorageError as problem:
            logger.warning("the outbox cannot be looked at: %s", problem)
            return
        if found:
            logs.event(logger, logging.INFO, "events found", uploads=found)
        age = 0.0 if counts.oldest is None else time.time() - counts.oldest
        if age > _LONG:
            logs.event(
                logger,
                logging.WARNING,
                "events wait",
                message=f"{counts.waiting} events wait to be delivered, the first of them for {age:.0f} s: "
                "tusd-py events list tells why, tusd-py status whether a worker runs",
                events=counts.waiting,
                oldest=round(age),
            )

    async def withdraw(self, event_type: EventType, upload: Upload, fence: Fence) -> None:
        """Takes back what was about to happen to an upload and did not. Under its lock. Raises StorageError, LeaseLost."""
        await self._withdraw(upload, {id_of(event_type, upload.info)}, fence)

    @property
    def delivers(self) -> bool:
        """Whether workers are told of anything."""
        return self._outbox is not None and self._hooks.delivers

    def enqueue(self, upload_id: str) -> None:
        """Has workers look at the events of an upload."""
        self.relay.enqueue(upload_id)

    async def record_removals(
        self,
        event_type: EventType,
        uploads: Sequence[Upload],
        request: RequestView,
        fences: Mapping[str, Fence],
    ) -> dict[str, RemovalEvent]:
        """Writes down that uploads are about to be removed, under their locks. fences: of these, by id.

        Returns, by id, the events that could not be written down. They keep nobody from removing: on a disk that is full, that
        makes the room for them.
        """
        return {
            each.id: RemovalEvent(id_of(event_type, each.info), each.offset)
            for each in uploads
            if not await self._record_removal(event_type, each, request, fences[each.id])
        }

    async def record_late(
        self, removal: UnpublishedRemoval, request: RequestView, fence: Fence
    ) -> EventType | None:
        """Writes down a removal after it. Returns what it was, None if it was none of ours. Raises StorageError, LeaseLost."""
        info = removal.upload.info
        for event_type in _REMOVALS:
            if id_of(event_type, info) == removal.event.event_id:
                await self.record(event_type, removal.upload, request, fence)
                return event_type
        return None

    async def _record_removal(
        self, event_type: EventType, upload: Upload, request: RequestView, fence: Fence
    ) -> bool:
        """Whether it could be written down, if it is ours to remove."""
        stale = {id_of(each, upload.info) for each in _REMOVALS}
        if not upload.finished:
            # Once it is gone, nobody could tell that this did not happen.
            stale.add(id_of(EventType.POST_FINISH, upload.info))
        try:
            await self._withdraw(upload, stale, fence)
            await self.record(event_type, upload, request, fence)
        except LeaseLost:
            # Nor will it be removed: that takes the same fence.
            return True
        except StorageError as problem:
            logger.warning("%s of %s is written down after it: %s", event_type, upload.id, problem)
            return False
        return True

    async def _withdraw(self, upload: Upload, stale: AbstractSet[str], fence: Fence) -> None:
        """Forgets the events of an upload with these ids."""
        if self._outbox is None or not self._hooks.delivers:
            return
        for kept in await self._outbox.of(upload.id):
            if kept.event_id in stale:
                await self._outbox.forget(kept, fence=fence)


def _event(event_type: EventType, upload: Upload, request: RequestView) -> Event:
    view = UploadView.of(upload.info, upload.offset)
    if event_type in DELIVERED:
        return Event(event_type, view, request, id=id_of(event_type, upload.info))
    return Event(event_type, view, request)
