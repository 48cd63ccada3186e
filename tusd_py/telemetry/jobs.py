"""Metrics of the work beside the server, from Redis and the outbox: due index, sweeps, queues, workers, events.

They are read at intervals in the background, so that a scrape never waits for Redis; samples that are too old are left out. Of
several processes that serve one port, the first one reads them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
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
    finished: int | None
    deliveries: dict[str, int]


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
        self._seen = await read(self._redis, self._outbox)

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


async def read(redis: RedisClient, outbox: Outbox | None) -> JobsSamples:
    """Read the samples. outbox: events for workers, None if there are none. Raises RedisUnavailable."""
    registry = DueIndex(redis)
    counts, sweeps = await registry.counts(time.time()), await registry.sweeps()
    looked = await redis.command("GET", redis.keys.scheduler)
    report = await redis.command("GET", redis.keys.jobs)
    is_whole = await registry.uploads.state() == b"whole"
    return JobsSamples(
        at=time.monotonic(),
        registry=counts,
        sweeps=sweeps,
        looked=float(looked) if isinstance(looked, bytes) else None,
        jobs=_report(report),
        events=await _events(outbox),
        finished=await registry.uploads.total("finished") if is_whole else None,
        deliveries=await deliveries(redis),
    )


async def deliveries(redis: RedisClient) -> dict[str, int]:
    """Return the number of deliveries of events by their outcome. Raises RedisUnavailable."""
    pairs = iter(cast("list[bytes]", await redis.command("HGETALL", redis.keys.deliveries)))
    return {
        name.decode("utf-8", "replace"): int(count)
        for name, count in zip(pairs, pairs, strict=True)
    }


async def _events(outbox: Outbox | None) -> OutboxCounts | None:
    try:
        return None if outbox is None else await outbox.counts()
    except StorageError as problem:
        logger.debug("the outbox cannot be counted: %s", problem)
        return None


def _report(answer: object) -> JobsReport | None:
    """Parse the report that Redis has of a scheduler; None if there is none that can be read."""
    try:
        return JobsReport.from_json(answer) if isinstance(answer, bytes) else None
    except (ValueError, TypeError, KeyError) as problem:
        # A scheduler of another version, for instance.
        logger.debug("the report on jobs cannot be parsed: %r", problem)
        return None
