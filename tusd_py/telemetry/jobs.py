"""Metrics of the work beside the server, from Redis and the outbox: due index, sweeps, queues, workers, events.

They are read at intervals in the background, so that a scrape never waits for Redis; samples that are too old are left out. Of
several processes that serve one port, the first one reads them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from tusd_py.jobs.status import JobsReport
from tusd_py.redis import RedisClient, RedisUnavailable
from tusd_py.redis.due_index import DueIndex, RegistryCounts, SweepRecord
from tusd_py.storage.base import Outbox, OutboxCounts, StorageError

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 15.0
_MAX_AGE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class JobsSamples:
    """What was read at `at` (monotonic seconds).

    looked: last heartbeat of a scheduler, in seconds since the epoch. finished: number of finished uploads, None while no list
    of uploads is kept.
    """

    at: float
    registry: RegistryCounts
    sweeps: list[SweepRecord]
    looked: float | None
    jobs: JobsReport | None
    events: OutboxCounts | None
    finished: int | None = None
    deliveries: dict[str, int] = field(default_factory=dict)


class JobsMetrics:
    """Reads the samples. outbox: events for workers, None if there are none.

    speaks: False for a process that leaves it to another process to report whether Redis works.
    """

    def __init__(self, redis: RedisClient, outbox: Outbox | None, *, speaks: bool) -> None:
        self._redis = redis
        self._outbox = outbox
        self._speaks = speaks
        self._seen: JobsSamples | None = None

    async def run(self) -> None:
        """Read at intervals, until cancelled."""
        while True:
            # The Redis client has logged that.
            with suppress(RedisUnavailable):
                await self.read()
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def read(self) -> None:
        """Read once. Raises RedisUnavailable; the earlier samples stay valid until they are too old."""
        registry, keys = DueIndex(self._redis), self._redis.keys
        counts, sweeps = await registry.counts(time.time()), await registry.sweeps()
        looked = await self._redis.command("GET", keys.scheduler)
        report = await self._redis.command("GET", keys.jobs)
        found = await self._redis.command("HGETALL", keys.deliveries)
        pairs = iter(cast("list[bytes]", found))
        self._seen = JobsSamples(
            at=time.monotonic(),
            registry=counts,
            sweeps=sweeps,
            looked=float(looked) if isinstance(looked, bytes) else None,
            jobs=read_report(report),
            events=await self._events(),
            finished=await registry.uploads.total("finished")
            if await registry.uploads.state() == b"whole"
            else None,
            deliveries={
                name.decode(): int(count) for name, count in zip(pairs, pairs, strict=True)
            },
        )

    async def _events(self) -> OutboxCounts | None:
        if self._outbox is None:
            return None
        try:
            return await self._outbox.counts()
        except StorageError as problem:
            logger.debug("the outbox cannot be counted: %s", problem)
            return None

    @property
    def redis_up(self) -> bool | None:
        """Whether Redis works; None if another process reports that."""
        return self._redis.available if self._speaks else None

    @property
    def samples(self) -> JobsSamples | None:
        """What was read last; None if that is too long ago."""
        seen = self._seen
        if seen is None or time.monotonic() - seen.at > _MAX_AGE_SECONDS:
            return None
        return seen


def read_report(answer: object) -> JobsReport | None:
    """Parse the report that Redis has of a scheduler; None if there is none that can be read."""
    try:
        return JobsReport.from_json(answer) if isinstance(answer, bytes) else None
    except (ValueError, TypeError, KeyError) as problem:
        # A scheduler of another version, for instance.
        logger.debug("the report on jobs cannot be parsed: %r", problem)
        return None
