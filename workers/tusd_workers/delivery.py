"""The job that delivers: tells the operator's hooks what the outbox says has happened to one upload, in order.

Whether it did happen is asked of the storage. An event is told to each of its hooks until that succeeds or has been tried
often enough; then it goes, or is put among those that were given up, and the next one's turn comes. Attempts are counted on
disk before they are made, so that one in which the worker dies counts too. Not for: whose turn it is (`desk.py`).
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from tusd_py import logs
from tusd_py.events import outbox_record
from tusd_py.events.hooks import Hooks
from tusd_py.events.model import EventType, HookCrashed, HookFailed
from tusd_py.events.outbox_record import MalformedOutboxRecord, OutboxRecord
from tusd_py.settings.model import Settings
from tusd_py.storage.base import (
    BytesMissing,
    KeptEvent,
    Outbox,
    StorageFull,
    Store,
    UploadDamaged,
    UploadGone,
    UploadNotFound,
)

logger = logging.getLogger(__name__)

_GROWTH = 3
_LONGEST = 3600.0
"""Seconds between two attempts, at most."""
_ABANDONED = 3600.0
"""Seconds after which what has not happened will not happen any more, unless it is written down again."""
_UNSOUND_PAUSE = 600.0
"""Seconds until it is looked again whether an upload that was damaged, or whose bytes were missing, is as it should be."""
_JITTER = 0.2
"""Part of a pause by which it is longer or shorter, so that not all that failed at once comes back at once."""


def deliver(upload_id: str) -> None:
    """The job. Raises RedisUnavailable, StorageError, RedisError; then the sweep sees to it."""
    # Not before it runs: whoever only puts jobs into the queue needs none of it.
    from tusd_workers import delivery_runner  # noqa: PLC0415

    delivery_runner.current().deliver(upload_id)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often is an event tried to be told, and with which pauses. first: seconds."""

    attempts: int
    first: float

    @classmethod
    def from_settings(cls, settings: Settings) -> RetryPolicy:
        """The operator's."""
        return cls(settings.hooks_delivery_attempts, settings.hooks_delivery_backoff)

    def pause(self, attempts: int) -> float:
        """Seconds after so many failed attempts."""
        longest = max(self.first, _LONGEST)
        pause = min(self.first * math.pow(_GROWTH, attempts - 1), longest)
        return pause * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 -- no secret


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a delivery left in the outbox. next: when to go on, in seconds since the epoch; None if there is nothing to go on
    with. passed_over: ids of events that have not happened (yet)."""

    next: float | None
    passed_over: frozenset[str]


class Delivery:
    """Delivers from one outbox to hooks that were started. counts: what was done, by `delivered`, `failed`, `given up`."""

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        hooks: Hooks,
        retries: RetryPolicy,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._hooks = hooks
        self._retries = retries
        self._clock = clock
        self.counts: Counter[str] = Counter()

    async def deliver(self, upload_id: str, is_held: Callable[[], bool]) -> Outcome:
        """Tells the events of an upload in order, as far as it comes. is_held: whether the turn still is ours.

        Raises StorageError.
        """
        passed_over: set[str] = set()
        for kept in await self._outbox.of(upload_id):
            try:
                record = _read(kept)
            except MalformedOutboxRecord as problem:
                await self._mark_failed(kept, kept.content, str(problem))
                continue
            try:
                has_happened = record is not None and await self._has_happened(kept, record)
            except (UploadDamaged, BytesMissing) as problem:
                # Nobody is told of bytes that are not those that were sent.
                logger.error("%s waits: %s", kept.event_id, problem)
                return Outcome(self._clock() + _UNSOUND_PAUSE, frozenset(passed_over))
            if record is None or not has_happened:
                if self._clock() - kept.kept_at > _ABANDONED:
                    await self._outbox.forget(kept)
                else:
                    passed_over.add(kept.event_id)
                continue
            if not is_held():
                return Outcome(self._clock(), frozenset(passed_over))
            next_attempt = await self._tell(kept, record)
            if next_attempt is not None:
                return Outcome(next_attempt, frozenset(passed_over))
        return Outcome(None, frozenset(passed_over))

    async def has_news(self, upload_id: str, passed_over: frozenset[str]) -> bool:
        """Whether something came into the outbox since."""
        return any(kept.event_id not in passed_over for kept in await self._outbox.of(upload_id))

    async def _has_happened(self, kept: KeptEvent, record: OutboxRecord) -> bool:
        """Whether what was about to happen did: it was written down before."""
        event_type = record.event.type
        if event_type is EventType.POST_CREATE:
            return True
        try:
            upload = await self._store.load(kept.upload_id)
        except (UploadGone, UploadNotFound):
            return await self._is_kept(kept)
        if upload.info.created_at != record.created_at:
            # Another one has its id by now.
            return await self._is_kept(kept)
        return event_type is EventType.POST_FINISH and upload.finished

    async def _is_kept(self, kept: KeptEvent) -> bool:
        """Whether it is still there: what had not happened to an upload was withdrawn before that was removed."""
        return any(each.event_id == kept.event_id for each in await self._outbox.of(kept.upload_id))

    async def _tell(self, kept: KeptEvent, record: OutboxRecord) -> float | None:
        """Makes an attempt; when to make the next one, None if there is none to be made."""
        if record.attempts >= self._retries.attempts:
            # A worker died in the last of them.
            await self._mark_failed(kept, kept.content, record.problem or "workers died in it")
            return None
        if record.not_before > self._clock():
            return record.not_before
        record = record.next_attempt()
        await self._record_attempt(kept, replace(record, problem="a worker died in it"))
        left, problem = await self._attempt(record)
        if not left:
            await self._outbox.forget(kept)
            self.counts["delivered"] += 1
            return None
        self._note_failure(record, left, problem)
        record = replace(record, hooks=left, problem=problem)
        if record.attempts >= self._retries.attempts:
            await self._mark_failed(kept, outbox_record.serialize(record), problem)
            return None
        record = replace(record, not_before=self._clock() + self._retries.pause(record.attempts))
        await self._record_attempt(kept, record)
        return record.not_before

    async def _record_attempt(self, kept: KeptEvent, record: OutboxRecord) -> None:
        """Records how far the delivery of an event has come. A full disk keeps nobody from being told."""
        try:
            await self._outbox.replace(kept, outbox_record.serialize(record))
        except StorageFull as problem:
            logger.warning("an attempt to deliver %s is not counted: %s", kept.event_id, problem)

    async def _attempt(self, record: OutboxRecord) -> tuple[tuple[str, ...], str]:
        """Tells each hook that was not told yet; the names of those that failed, and why."""
        problems: dict[str, str] = {}
        for name in record.hooks:
            try:
                await self._hooks.deliver(name, record.event)
            except HookFailed as problem:
                problems[name] = str(problem)
                if isinstance(problem, HookCrashed):
                    logger.warning("the hook %s failed", name, exc_info=problem.__cause__)
        return tuple(problems), "; ".join(f"{name}: {text}" for name, text in problems.items())

    async def _mark_failed(self, kept: KeptEvent, content: bytes, problem: str) -> None:
        await self._outbox.mark_failed(kept, content)
        self.counts["given up"] += 1
        logs.event(
            logger,
            logging.ERROR,
            "event given up",
            upload=kept.upload_id,
            id=kept.event_id,
            reason=problem,
        )

    def _note_failure(self, record: OutboxRecord, hooks: tuple[str, ...], reason: str) -> None:
        self.counts["failed"] += 1
        event = record.event
        logs.event(
            logger,
            logging.WARNING,
            "delivery failed",
            type=event.type,
            upload=event.upload.id,
            id=event.id,
            attempt=record.attempts,
            hooks=", ".join(hooks),
            reason=reason,
        )


def _read(kept: KeptEvent) -> OutboxRecord | None:
    """None for one whose content a power cut took, before what it tells of was recorded. Raises MalformedIntent."""
    return outbox_record.parse(kept.content) if kept.content else None
