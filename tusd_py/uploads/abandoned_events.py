"""Drop events from the outbox that were recorded but have not happened, as when a server died before what they tell of.

They are dropped under the upload's lock: they are recorded and happen under it, so nobody who has recorded one can still make
it happen. An attempt that is made later records it again. Not for: deciding whether an event has happened
(`tusd_py.events.occurrence`).
"""

from __future__ import annotations

import time

from tusd_py.events import outbox_record
from tusd_py.events.occurrence import has_happened
from tusd_py.events.outbox_record import MalformedOutboxRecord
from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import KeptEvent, Outbox, StorageError
from tusd_py.uploads.operation import Collaborators, Operation

_LOOK_SECONDS = 3600.0
"""Least time between two looks of a process at all events that wait, but for those of sweeps of the whole storage."""
_ABANDONED_SECONDS = 3600.0
"""Age from which on it is checked whether an event has happened. What has just been recorded is about to happen."""
OUTDATED_SECONDS = 5.0
"""Time between the record of an event and the change that it tells of from which on the record may have been dropped: the lock
may have been lost meanwhile, and a request to an object store takes effect all the same."""


class AbandonedEvents(Operation):
    """Drops abandoned events of the uploads of one store."""

    def __init__(self, collaborators: Collaborators) -> None:
        super().__init__(collaborators)
        self._looked_at = time.monotonic()

    async def drop_at_times(self, *, always: bool) -> None:
        """Drop all if that was not done for a while, or in any case. Raises StorageError."""
        if always or time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self._looked_at = time.monotonic()
            await self.drop()

    async def drop(self) -> int:
        """Drop all abandoned events of uploads that are not locked; return how many. Raises StorageError."""
        outbox, dropped = self._publisher.outbox, 0
        if outbox is None or not self._publisher.delivers:
            return 0
        async for kept in outbox.every("waiting"):
            if self._guard.closing:
                break
            if self._expiry.now() - kept.kept_at <= _ABANDONED_SECONDS:
                continue
            try:
                if await self._is_abandoned(outbox, kept):
                    dropped += await self._drop(outbox, kept)
            except ProtocolError:
                # No locks are granted now.
                break
        return dropped

    async def _drop(self, outbox: Outbox, kept: KeptEvent) -> bool:
        """Drop an event unless its upload is locked, or it has happened meanwhile; return whether it did."""
        async with self._guard.if_free(kept.upload_id) as lease:
            # Not one that was recorded again before the lock was acquired.
            is_same = lease is not None and kept in await outbox.of(kept.upload_id)
            if lease is not None and is_same and await self._is_abandoned(outbox, kept):
                await outbox.forget(kept, fence=lease.fence)
                return True
        return False

    async def _is_abandoned(self, outbox: Outbox, kept: KeptEvent) -> bool:
        """Return whether an event has not happened; False if that cannot be told."""
        try:
            record = outbox_record.parse_if_any(kept.content)
            if record is not None and record.happened:
                # Many wait for hooks that fail: their uploads need not be looked at.
                return False
            return record is None or not await has_happened(self._store, outbox, kept, record)
        except (MalformedOutboxRecord, StorageError):
            return False
