"""What the bucket holds of an upload: whole parts without a gap, the tail behind them, or the object itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.object_store import (
    ObjectHead,
    ObjectNotFound,
    ObjectStore,
    Part,
    Properties,
)
from tusd_py.storage.s3.record import TOKEN, Record

logger = logging.getLogger(__name__)

_START = "tusd-py-start"
"""Name in the metadata of a tail: the offset at which it starts."""
_TIME = "tusd-py-time"


@dataclass(slots=True)
class Progress:
    """The bytes of an upload that count.

    Attributes:
        parts: Whole parts, from the first on without a gap.
        end: Bytes in them.
        tail: The object behind them; None if there is none that counts.
        tail_etag: Of the tail that is there, also if it does not count; empty if there is none.
        done: The upload's object exists, so that nothing else matters.
        size: Its bytes.
        changed_at: When the last byte arrived, in seconds since the epoch; at another process, when it was stored.
        is_lost: The multipart upload that the record names is gone, as after a rule of the bucket aborted it.
        finished_at: When it was finished, if the object tells; the record may tell instead.
    """

    parts: list[Part] = field(default_factory=list)
    end: int = 0
    tail: ObjectHead | None = None
    tail_etag: str = ""
    done: bool = False
    size: int = 0
    changed_at: float = 0.0
    is_lost: bool = False
    finished_at: float | None = None

    @property
    def offset(self) -> int:
        if self.done:
            return self.size
        return self.end + (self.tail.size if self.tail is not None else 0)


def tail_properties(record: Record, start: int, now: float) -> Properties:
    """What is stored with a tail that starts at this offset. now: seconds since the epoch."""
    return Properties(metadata={TOKEN: record.token, _START: str(start), _TIME: repr(now)})


def tail_time(tail: ObjectHead) -> float:
    """When a tail was stored, by the clock of the process that did: the store's own time is coarser."""
    try:
        return float(tail.properties.metadata[_TIME])
    except (KeyError, ValueError):
        return tail.modified_at


def part_size(record: Record, number: int) -> int:
    """Bytes of a part that is whole: the last one ends with the upload."""
    start, size, length = record.plan.start(number), record.plan.size(number), record.info.length
    return size if length is None else min(size, length - start)


async def read_progress(objects: ObjectStore, layout: Layout, record: Record) -> Progress:
    """Ask the store what it holds of an unfinished upload. Raises ObjectStoreError."""
    if record.info.is_final:
        return await finished_object(objects, layout, record) or Progress()
    if not record.multipart:
        return await _of_single(objects, layout, record)
    try:
        listed = await objects.list_parts(layout.data(record.info), record.multipart)
    except ObjectNotFound:
        # Completed, or aborted by a rule of the bucket: only the object itself proves the former.
        done = await finished_object(objects, layout, record)
        if done is not None:
            return done
        logger.warning("the multipart upload of %s is gone, and its bytes with it", record.info.id)
        progress = Progress(is_lost=True)
        _add_tail(progress, record, await _head(objects, layout.tail(record.info.id)))
        return progress
    progress = Progress()
    for number, part in enumerate(newest(listed, record), start=1):
        if (
            part is None
            or part.number != number
            or not record.counts(number)
            or part.size != part_size(record, number)
        ):
            break
        progress.parts.append(part)
        progress.end += part.size
        progress.changed_at = max(progress.changed_at, part.stored_at)
    _add_tail(progress, record, await _head(objects, layout.tail(record.info.id)))
    return progress


def newest(listed: Sequence[Part], record: Record) -> Iterator[Part | None]:
    """The parts by number; None for one that is listed twice, if which of them is newer is unknown."""
    for number, group in groupby(listed, key=lambda part: part.number):
        candidates = list(group)
        if number in record.replaced:
            candidates = [part for part in candidates if part.etag == record.replaced[number]]
        newest = candidates[-1] if candidates else None
        is_unclear = any(
            part.stored_at == newest.stored_at and part != newest
            for part in candidates
            if newest is not None
        )
        yield None if is_unclear else newest


async def finish_of(objects: ObjectStore, layout: Layout, record: Record) -> float | None:
    """When an upload was finished, by its record or else by its object; None if it was not. Raises ObjectStoreError."""
    length = record.info.length
    if record.info.finished_at is not None or record.multipart or record.info.is_final:
        return record.info.finished_at
    if length is None or length > record.plan.size(1):
        return None
    done = await finished_object(objects, layout, record)
    return None if done is None else done.finished_at


async def _of_single(objects: ObjectStore, layout: Layout, record: Record) -> Progress:
    """Of an upload without parts: a tail, or already the object."""
    length = record.info.length
    progress = Progress()
    if length is not None and length <= record.plan.size(1):
        progress = await finished_object(objects, layout, record) or progress
    if progress.finished_at is not None:
        return progress
    _add_tail(progress, record, await _head(objects, layout.tail(record.info.id)))
    return progress


def _add_tail(progress: Progress, record: Record, tail: ObjectHead | None) -> None:
    """A tail counts only where the whole parts end: an older one is in them, a newer one is behind a gap."""
    if tail is None:
        return
    progress.tail_etag = tail.etag
    # One without bytes is what a refused body left.
    if progress.done or not tail.size:
        return
    metadata = tail.properties.metadata
    if metadata.get(TOKEN) == record.token and metadata.get(_START) == str(progress.end):
        progress.tail = tail
        progress.changed_at = max(progress.changed_at, tail_time(tail))


async def finished_object(objects: ObjectStore, layout: Layout, record: Record) -> Progress | None:
    """The progress of an upload whose object exists, by its token and its size; None for others."""
    head = await _head(objects, layout.data(record.info))
    length = record.info.length
    if record.info.is_final and length is None:
        # The format of records has no other word for a final that was joined from nothing.
        length = 0
    if head is None or not record.is_at(head) or head.size != length:
        return None
    return Progress(
        done=True,
        size=head.size,
        changed_at=head.modified_at,
        finished_at=record.finish_in(head.properties),
    )


async def _head(objects: ObjectStore, key: str) -> ObjectHead | None:
    try:
        return await objects.head(key)
    except ObjectNotFound:
        return None
