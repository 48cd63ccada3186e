"""What the bucket holds of an upload: whole parts without a gap, the tail behind them, or the object itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from tusd_py.locks.base import LeaseLost
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.object_store import ObjectHead, ObjectNotFound, Part, Properties
from tusd_py.storage.s3.record import TOKEN, Record
from tusd_py.storage.s3.requests import ObjectStore

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

    def add(self, part: Part) -> None:
        """Count the next part of a list."""
        self.parts.append(part)
        self.end += part.size
        self.changed_at = max(self.changed_at, part.stored_at)


def tail_properties(record: Record, start: int, now: float) -> Properties:
    """What is stored with a tail that starts at this offset. now: seconds since the epoch."""
    return Properties(metadata={TOKEN: record.token, _START: str(start), _TIME: repr(now)})


def tail_time(tail: ObjectHead) -> float:
    """When a tail was stored, by the clock of the process that did: the store's own time is coarser."""
    try:
        return float(tail.properties.metadata[_TIME])
    except (KeyError, ValueError):
        return tail.modified_at


async def read_tail(objects: ObjectStore, tail: ObjectHead, *, limit: int | None = None) -> bytes:
    """The bytes of a tail. Raises LeaseLost if another holder replaced it, ObjectStoreError.

    limit: most bytes of one that may be replaced by a longer one; None for those of the tail.
    """
    head, data = await objects.read(tail.key, limit=tail.size if limit is None else limit)
    if head.etag != tail.etag:
        raise LeaseLost(f"another holder replaced {tail.key}")
    return data


def part_size(record: Record, number: int) -> int:
    """Bytes of a part that is whole: the last one ends with the upload."""
    start, size, length = record.plan.start(number), record.plan.size(number), record.info.length
    return size if length is None else min(size, length - start)


async def read_progress(objects: ObjectStore, layout: Layout, record: Record) -> Progress:
    """Ask the store what it holds of an unfinished upload. Raises ObjectStoreError."""
    if record.info.is_final:
        return await finished_object(objects, layout, record) or Progress()
    if record.multipart:
        progress = await _of_parts(objects, layout, record)
        is_over = progress.done
    else:
        progress = await _single_object(objects, layout, record) or Progress()
        is_over = progress.finished_at is not None
    if not is_over:
        _add_tail(progress, record, await objects.head_or_none(layout.tail(record.info.id)))
    return progress


async def _of_parts(objects: ObjectStore, layout: Layout, record: Record) -> Progress:
    """The whole parts of the multipart upload that the record names, or the object that it has become."""
    try:
        listed = await objects.list_parts(layout.data(record.info), record.multipart)
    except ObjectNotFound:
        # Completed, or aborted by a rule of the bucket: only the object itself proves the former.
        done = await finished_object(objects, layout, record)
        if done is not None:
            return done
        logger.warning("the multipart upload of %s is gone, and its bytes with it", record.info.id)
        return Progress(is_lost=True)
    progress = Progress()
    for number, part in enumerate(newest(listed, record), start=1):
        if (
            part is None
            or part.number != number
            or not record.counts(number)
            or part.size != part_size(record, number)
        ):
            break
        progress.add(part)
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
    if record.info.finished_at is not None or record.multipart or record.info.is_final:
        return record.info.finished_at
    done = await _single_object(objects, layout, record)
    return None if done is None else done.finished_at


async def _single_object(objects: ObjectStore, layout: Layout, record: Record) -> Progress | None:
    """The progress of an upload without parts whose object exists; None for others."""
    length = record.info.length
    if length is None or length > record.plan.size(1):
        return None
    return await finished_object(objects, layout, record)


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
    head = await objects.head_or_none(layout.data(record.info))
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
