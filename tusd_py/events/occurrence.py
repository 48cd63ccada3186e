"""Decide whether a recorded event has happened: it is recorded before it happens, so that a crash in between does not lose it.

The storage decides. Only an event that has happened is delivered. Only one that has not is dropped, under its upload's lock
(`tusd_py.uploads.abandoned_events`), as the holder of the lock may be about to make it happen. Changes nothing.
"""

from __future__ import annotations

from tusd_py.events.model import EventType
from tusd_py.events.outbox_record import OutboxRecord
from tusd_py.storage.base import KeptEvent, Outbox, Store, UploadGone, UploadNotFound


async def has_happened(store: Store, outbox: Outbox, kept: KeptEvent, record: OutboxRecord) -> bool:
    """Return whether an event in the outbox has happened.

    Args:
        store: Has the upload.
        outbox: Has the event.
        kept: The event.
        record: Its content.

    Raises:
        StorageError: The store cannot tell, as with UploadDamaged, BytesMissing and UploadUnreachable.
    """
    event_type = record.event.type
    if event_type is EventType.POST_CREATE:
        return True
    try:
        upload = await store.load(kept.upload_id)
    except (UploadGone, UploadNotFound):
        return await _is_kept(outbox, kept)
    if upload.info.created_at != record.created_at:
        # A later upload has the same id.
        return await _is_kept(outbox, kept)
    return event_type is EventType.POST_FINISH and upload.finished


async def _is_kept(outbox: Outbox, kept: KeptEvent) -> bool:
    """Return whether an event is still recorded: those that had not happened are withdrawn before an upload is removed."""
    return any(each.event_id == kept.event_id for each in await outbox.of(kept.upload_id))
