"""Failed events in the outbox: deliver them again, or drop them. For operators."""

from __future__ import annotations

from dataclasses import replace

from tusd_py.events import outbox_record
from tusd_py.storage.base import KeptEvent, Outbox


async def replay(outbox: Outbox, kept: KeptEvent) -> None:
    """Let workers deliver a failed event again, as if it were new. Raises MalformedOutboxRecord, StorageError."""
    record = outbox_record.parse(kept.content)
    again = replace(record, attempts=0, not_before=0.0, problem="", happened=True)
    await outbox.replay(kept, outbox_record.serialize(again))


async def drop(outbox: Outbox, kept: KeptEvent) -> None:
    """Remove a failed event for good. Raises StorageError."""
    await outbox.forget(kept, "failed")
