"""Decide whether a recorded event has happened: it is recorded before it happens, so that a crash in between does not lose it.

The storage decides. Only an event that has happened is delivered. Only one that has not is dropped, under its upload's lock
(`tusd_py.uploads.abandoned_events`), as the holder of the lock may be about to make it happen. Changes nothing.

Once an upload is removed, its tombstone decides, if it tells enough. It has to where a server may store an event after another
one has removed the upload: a request to a bucket may take effect after the lease has ended.
"""

from __future__ import annotations

from tusd_py.events.model import EventType
from tusd_py.events.outbox_record import OutboxRecord
from tusd_py.storage.base import (
    KeptEvent,
    Outbox,
    Removed,
    Store,
    UploadGone,
    UploadNotFound,
)


async def has_happened(store: Store, outbox: Outbox, kept: KeptEvent, record: OutboxRecord) -> bool:
    """Return whether an event in the outbox has happened.

    Args:
        store: Has the upload.
        outbox: Has the event.
        kept: The event.
        record: Its content.

    Raises:
        StorageError: The store cannot tell; UploadDamaged, BytesMissing and UploadUnreachable of a single upload.
    """
    event_type = record.event.type
    if event_type is EventType.POST_CREATE:
        # It is recorded once the upload exists. If the creation is undone then, the event is withdrawn.
        return True
    try:
        upload = await store.load(kept.upload_id)
    except UploadGone as problem:
        return await _of_removed(outbox, kept, record, problem.removed)
    except UploadNotFound:
        return await _of_removed(outbox, kept, record, None)
    if upload.info.created_at != record.created_at:
        # A later upload has the same id.
        return await _of_removed(outbox, kept, record, None)
    return event_type is EventType.POST_FINISH and upload.finished


async def _of_removed(
    outbox: Outbox,
    kept: KeptEvent,
    record: OutboxRecord,
    removed: Removed | None,
) -> bool:
    """Return whether an event of an upload that is not there has happened. removed: what the tombstone tells."""
    recorded = {each.event_id for each in await outbox.of(kept.upload_id)}
    if kept.event_id not in recorded:
        # It was withdrawn before the removal, as it had not happened.
        return False
    if record.happened:
        return True
    if removed is not None and removed.created_at != record.created_at:
        # Of a later upload with the same id.
        removed = None
    if record.event.type is EventType.POST_FINISH:
        return removed is None or removed.finished
    return removed is None or removed.event_id in ("", kept.event_id)
