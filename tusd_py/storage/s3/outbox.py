"""The outbox of a bucket: events as objects under the state prefix.

outbox/<upload>/<sequence>-<event>          waiting events
outbox-failed/<upload>/<sequence>-<event>   events that failed for good, until an operator replays them
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from tusd_py.locks.base import UNFENCED, Fence, ensure_held
from tusd_py.storage.base import Box, KeptEvent, OutboxCounts, next_sequence
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.object_store import JSON, ListedObject, ObjectNotFound, for_each
from tusd_py.storage.s3.requests import ObjectStore
from tusd_py.storage.s3.translation import translated

_DIRECTORIES: dict[Box, str] = {"waiting": "outbox", "failed": "outbox-failed"}
_parse = re.compile(r"(?P<sequence>[0-9]{6})-(?P<event>[0-9a-f]{1,40})").fullmatch
_KEPT_AT = "tusd-py-kept-at"
"""Name in an event's metadata: when it was put there first, in seconds since the epoch."""
_EVENT_LIMIT = 16 * 1024 * 1024
_AT_ONCE = 16


class S3Outbox:
    """See `Outbox`."""

    def __init__(self, objects: ObjectStore, layout: Layout) -> None:
        self._objects = objects
        self._layout = layout

    async def keep(
        self, upload_id: str, event_id: str, content: bytes, *, sync: bool = False, fence: Fence
    ) -> None:
        with translated(f"keeping an event of {upload_id}"):
            others = [event async for event in self._listed("waiting", upload_id)]
            event = KeptEvent(upload_id, event_id, next_sequence(others), content, 0.0)
            ensure_held(fence)
            await self._put("waiting", event, content)
            for other in others:
                # From an earlier attempt.
                if other.event_id == event_id:
                    await self._objects.delete(self._key("waiting", other))

    async def sync(self, upload_ids: Sequence[str]) -> None:
        """Do nothing: an object is durable once it is stored."""

    async def of(self, upload_id: str, box: Box = "waiting") -> list[KeptEvent]:
        with translated(f"reading the events of {upload_id}"):
            return await self._read(box, [event async for event in self._listed(box, upload_id)])

    async def forget(
        self, event: KeptEvent, box: Box = "waiting", *, fence: Fence = UNFENCED
    ) -> None:
        with translated(f"forgetting an event of {event.upload_id}"):
            ensure_held(fence)
            await self._objects.delete(self._key(box, event))

    async def replace(self, event: KeptEvent, content: bytes) -> None:
        with translated(f"changing an event of {event.upload_id}"):
            await self._put("waiting", event, content)

    async def mark_failed(self, event: KeptEvent, content: bytes) -> None:
        with translated(f"moving an event of {event.upload_id} to the failed ones"):
            await self._put("failed", event, content)
            await self._objects.delete(self._key("waiting", event))

    async def replay(self, event: KeptEvent, content: bytes) -> None:
        # A failed event is final: no holder of the lock can void it.
        await self.keep(event.upload_id, event.event_id, content, sync=True, fence=UNFENCED)
        await self.forget(event, "failed")

    async def uploads(self) -> AsyncIterator[list[str]]:
        with translated("listing events"):
            last = ""
            async for page in self._objects.list(self._layout.directory(_DIRECTORIES["waiting"])):
                batch: list[str] = []
                for listed in page:
                    event = self._event(listed)
                    if event is not None and event.upload_id != last:
                        last = event.upload_id
                        batch.append(last)
                yield batch

    async def every(self, box: Box) -> AsyncIterator[KeptEvent]:
        with translated("reading events"):
            batch: list[KeptEvent] = []
            async for event in self._listed(box):
                batch.append(event)
                if len(batch) == _AT_ONCE:
                    for each in await self._read(box, batch):
                        yield each
                    batch = []
            for each in await self._read(box, batch):
                yield each

    async def counts(self, *, exact: bool = False) -> OutboxCounts:
        with translated("counting events"):
            waiting, failed, oldest = 0, 0, None
            async for event in self._listed("waiting"):
                waiting += 1
                oldest = event.kept_at if oldest is None else min(oldest, event.kept_at)
            async for _ in self._listed("failed"):
                failed += 1
            return OutboxCounts(waiting, failed, oldest)

    # Objects

    def _key(self, box: Box, event: KeptEvent) -> str:
        return self._layout.state(
            _DIRECTORIES[box], event.upload_id, f"{event.sequence:06}-{event.event_id}"
        )

    def _event(self, listed: ListedObject) -> KeptEvent | None:
        names = self._layout.names(listed.key)
        found = _parse(names[-1]) if len(names) == 3 else None
        if found is None:
            return None
        return KeptEvent(names[1], found["event"], int(found["sequence"]), b"", listed.modified_at)

    async def _listed(self, box: Box, *upload_id: str) -> AsyncIterator[KeptEvent]:
        """The events without their content, and with the time at which the object was stored."""
        prefix = self._layout.directory(_DIRECTORIES[box], *upload_id)
        async for listed in self._objects.each(prefix):
            event = self._event(listed)
            if event is not None:
                yield event

    async def _read(self, box: Box, events: Sequence[KeptEvent]) -> list[KeptEvent]:
        """The events with their content; those that were removed meanwhile are left out."""
        found = await for_each(events, partial(self._read_one, box), at_once=_AT_ONCE)
        return [event for event in found if event is not None]

    async def _read_one(self, box: Box, event: KeptEvent) -> KeptEvent | None:
        try:
            head, content = await self._objects.read(self._key(box, event), limit=_EVENT_LIMIT)
        except ObjectNotFound:
            return None
        kept_at = head.modified_at
        with suppress(ValueError):
            kept_at = float(head.properties.metadata.get(_KEPT_AT, ""))
        return KeptEvent(event.upload_id, event.event_id, event.sequence, content, kept_at)

    async def _put(self, box: Box, event: KeptEvent, content: bytes) -> None:
        metadata = {_KEPT_AT: repr(event.kept_at)} if event.kept_at else {}
        await self._objects.put(self._key(box, event), content, replace(JSON, metadata=metadata))
