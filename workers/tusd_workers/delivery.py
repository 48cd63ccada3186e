"""Delivers the events of one upload from the outbox to the operator's hooks, in order.

The storage decides whether a recorded event did happen; one that did not is passed over and stays. An event is delivered to
each of its hooks until that succeeds or the attempts are used up; then it is removed or marked as failed, and the next one
follows. Attempts are counted on disk before they are made, so that one during which the worker dies counts too.
`delivery_runner` holds the lease. Not for: dropping events that have not happened, which needs the upload's lock
(`tusd_py.uploads.abandoned_events`).
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
from tusd_py.events.model import HookCrashed, HookFailed
from tusd_py.events.occurrence import has_happened
from tusd_py.events.outbox_record import MalformedOutboxRecord, OutboxRecord
from tusd_py.storage.base import (
    BytesMissing,
    KeptEvent,
    Outbox,
    StorageFull,
    Store,
    UploadDamaged,
    UploadUnreachable,
)

logger = logging.getLogger(__name__)

_BACKOFF_FACTOR = 3
_MAX_PAUSE_SECONDS = 3600.0
"""Longest pause between two attempts."""
_DAMAGED_PAUSE_SECONDS = 600.0
"""Pause before a damaged upload, or one with missing bytes, is checked again."""
_JITTER = 0.2
"""Random part of a pause, which spreads the retries of events that failed at the same time."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Number of attempts to deliver an event, and the first pause between them in seconds."""

    attempts: int
    first: float

    def pause(self, attempts: int) -> float:
        """Return the pause in seconds after so many failed attempts."""
        return self._mean_pause(attempts) * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 -- no secret

    def longest_pause(self, attempts: int) -> float:
        """Return the longest pause in seconds that there can be after so many failed attempts."""
        return self._mean_pause(attempts) * (1 + _JITTER)

    def _mean_pause(self, attempts: int) -> float:
        longest = max(self.first, _MAX_PAUSE_SECONDS)
        return min(self.first * math.pow(_BACKOFF_FACTOR, attempts - 1), longest)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a delivery left in the outbox."""

    next: float | None
    """When to continue, in seconds since the epoch; None if nothing is left to deliver."""
    passed_over: frozenset[str]
    """Ids of events that have not happened yet."""


class Delivery:
    """Delivers from an outbox to started hooks.

    counts: outcomes, by `delivered`, `failed` and `given up`. calling: name of the hook that is being called; empty if none is.
    """

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
        self.calling = ""

    async def deliver(self, upload_id: str, is_held: Callable[[], bool]) -> Outcome:
        """Deliver the events of an upload in order, up to the first that has to wait. Raises StorageError.

        is_held: returns whether the lease is still held.
        """
        passed_over: set[str] = set()
        for kept in await self._outbox.of(upload_id):
            try:
                record = outbox_record.parse_if_any(kept.content)
            except MalformedOutboxRecord as problem:
                await self._mark_failed(kept, kept.content, str(problem))
                continue
            try:
                is_due = record is not None and await has_happened(
                    self._store, self._outbox, kept, record
                )
            except (UploadDamaged, BytesMissing, UploadUnreachable) as problem:
                # No hook may see bytes that differ from those that were sent.
                logger.error("%s waits: %s", kept.event_id, problem)
                return Outcome(self._clock() + _DAMAGED_PAUSE_SECONDS, frozenset(passed_over))
            if record is None or not is_due:
                passed_over.add(kept.event_id)
                continue
            if not is_held():
                return Outcome(self._clock(), frozenset(passed_over))
            next_attempt = await self._try_deliver(kept, record)
            if next_attempt is not None:
                return Outcome(next_attempt, frozenset(passed_over))
        return Outcome(None, frozenset(passed_over))

    async def has_news(self, upload_id: str, passed_over: frozenset[str]) -> bool:
        """Return whether the upload has other events in the outbox, or one of these has happened since. Raises StorageError."""
        for kept in await self._outbox.of(upload_id):
            if kept.event_id not in passed_over:
                return True
            record = outbox_record.parse_if_any(kept.content)
            if record is not None and await has_happened(self._store, self._outbox, kept, record):
                return True
        return False

    async def _try_deliver(self, kept: KeptEvent, record: OutboxRecord) -> float | None:
        """Attempt to deliver an event. Return when to try again, or None if it is done with."""
        if record.attempts >= self._retries.attempts:
            # A worker died during the last attempt.
            await self._mark_failed(kept, kept.content, record.problem or "workers died in it")
            return None
        # One that is farther ahead was written by a clock that has been set back since.
        left_to_wait = record.not_before - self._clock()
        if 0 < left_to_wait <= self._retries.longest_pause(record.attempts):
            return record.not_before
        record = record.next_attempt()
        await self._record_attempt(kept, replace(record, problem="a worker died in it"))
        left, problem = await self._attempt(record)
        if not left:
            await self._outbox.forget(kept)
            self.counts["delivered"] += 1
            return None
        self._log_failure(record, left, problem)
        record = replace(record, hooks=left, problem=problem)
        if record.attempts >= self._retries.attempts:
            await self._mark_failed(kept, outbox_record.serialize(record), problem)
            return None
        record = replace(record, not_before=self._clock() + self._retries.pause(record.attempts))
        await self._record_attempt(kept, record)
        return record.not_before

    async def _record_attempt(self, kept: KeptEvent, record: OutboxRecord) -> None:
        """Record the attempts of an event. A full disk does not stop its delivery."""
        try:
            await self._outbox.replace(kept, outbox_record.serialize(record))
        except StorageFull as problem:
            logger.warning("an attempt to deliver %s is not counted: %s", kept.event_id, problem)

    async def _attempt(self, record: OutboxRecord) -> tuple[tuple[str, ...], str]:
        """Call each remaining hook. Return the names of those that failed, and why."""
        problems: dict[str, str] = {}
        for name in record.hooks:
            self.calling = name
            try:
                await self._hooks.deliver(name, record.event)
            except HookFailed as problem:
                problems[name] = str(problem)
                if isinstance(problem, HookCrashed):
                    logger.warning("the hook %s failed", name, exc_info=problem.__cause__)
            finally:
                self.calling = ""
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

    def _log_failure(self, record: OutboxRecord, hooks: tuple[str, ...], reason: str) -> None:
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
