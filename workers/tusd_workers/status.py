"""Collects the state of an instance's jobs: queues, workers, the schedule, the last sweeps, and problems."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from tusd_py.jobs import inspection as jobs
from tusd_py.jobs.connection import connect, refused_commands
from tusd_py.jobs.inspection import WorkerStatus
from tusd_py.jobs.queues import DELIVERY
from tusd_py.jobs.status import QueueStatus
from tusd_py.redis import Keys, RedisClient
from tusd_py.redis.due_index import DueIndex, RegistryCounts, SweepRecord
from tusd_py.redis.live import COUNTED, LiveBoard
from tusd_py.redis.upload_list import UploadList
from tusd_py.service.backends import connected_redis, store_to_read
from tusd_py.settings.model import Settings
from tusd_py.storage.base import OutboxCounts
from tusd_workers.scheduler import Scheduler, schedules

_OVERDUE_INTERVALS = 3
"""Sweep intervals without a sweep that count as a problem."""


@dataclass(frozen=True, slots=True)
class EventsStatus:
    """Events that workers deliver to hooks.

    waiting, failed: number of events in the outbox and of failed ones.
    oldest: seconds that the oldest event has been waiting.
    done: number of events delivered, attempts failed and events given up, since Redis was last empty.
    """

    waiting: int
    failed: int
    oldest: float | None
    done: dict[str, int]


@dataclass(frozen=True, slots=True)
class Activity:
    """What servers did lately, as far as they keep count of it: where there are operators, or a Redis of one's own.

    finished, parts: uploads in these states; None if not counted. hour: counts of the last hour, by `live.COUNTED`.
    """

    finished: int | None
    parts: int | None
    hour: dict[str, int]


@dataclass(frozen=True, slots=True)
class Status:
    """The state of all jobs of an instance.

    needs_workers: whether workers are meant to run; not where servers sweep and call hooks by themselves.
    scheduler: seconds since a scheduler was last active; None if none runs.
    schedule: next run of each job by name, in seconds since the epoch.
    """

    registry: RegistryCounts
    sweeps: list[SweepRecord]
    queues: list[QueueStatus]
    workers: list[WorkerStatus]
    needs_workers: bool
    scheduler: float | None
    schedule: dict[str, float]
    events: EventsStatus
    refused: list[str]
    """Required commands that the Redis user may not run."""
    activity: Activity

    def problems(self, settings: Settings) -> Iterator[str]:
        """Yield what an operator has to attend to."""
        for command in self.refused:
            yield f"the Redis user may not run {command} (docs/state.md)"
        if self.needs_workers and not self.workers:
            yield "no worker runs"
        if self.needs_workers and self.scheduler is None:
            yield "no scheduler runs"
        for queue in self.queues:
            # The outbox has the outcome of deliveries.
            if queue.failed and queue.name != DELIVERY:
                failed = "1 job" if queue.failed == 1 else f"{queue.failed} jobs"
                yield f"{failed} failed in the queue {queue.name}"
        if self.events.failed:
            failed = "1 event" if self.events.failed == 1 else f"{self.events.failed} events"
            yield f"{failed} failed after all attempts (tusd-py events failed)"
        if (self.events.oldest or 0.0) > _OVERDUE_INTERVALS * settings.sweep_interval + 60:
            yield "an event has been waiting for too long (tusd-py events list)"
        now = time.time()
        last = max((each.ended for each in self.sweeps if not each.is_ahead(now)), default=0.0)
        if now - last > _OVERDUE_INTERVALS * settings.sweep_interval + 60:
            yield "nothing has been swept for too long"


def collect(settings: Settings, url: str) -> Status:
    """Read the state from Redis and the outbox. Raises RedisError, RedisUnavailable."""
    prefix, keys = settings.redis_prefix, Keys(settings.redis_prefix)
    with connect(url) as connection:
        looked = connection.get(keys.scheduler)
        counts, sweeps, activity, kept = asyncio.run(_read(settings, url))
        done = cast("dict[bytes, bytes]", connection.hgetall(keys.deliveries))
        return Status(
            registry=counts,
            sweeps=sweeps,
            queues=jobs.queues(connection, prefix),
            workers=jobs.workers(connection, prefix),
            needs_workers=not connection.exists(keys.without_workers),
            scheduler=time.time() - float(looked) if isinstance(looked, bytes) else None,
            schedule=Scheduler(connection, schedules(settings), prefix=prefix).upcoming(),
            events=EventsStatus(
                waiting=kept.waiting,
                failed=kept.failed,
                oldest=None if kept.oldest is None else max(0.0, time.time() - kept.oldest),
                done={name.decode(): int(count) for name, count in done.items()},
            ),
            refused=[name for name, _ in refused_commands(connection, prefix)],
            activity=activity,
        )


async def _read(
    settings: Settings, url: str
) -> tuple[RegistryCounts, list[SweepRecord], Activity, OutboxCounts]:
    async with connected_redis(settings, url) as redis, store_to_read(settings) as store:
        registry, now = DueIndex(redis), time.time()
        counts, sweeps = await registry.counts(now), await registry.sweeps()
        activity = await _activity(redis, now)
        return counts, sweeps, activity, await store.outbox.counts(exact=True)


async def _activity(redis: RedisClient, now: float) -> Activity:
    listed = await UploadList(redis).counts(now)
    periods = await LiveBoard(redis).hour(now)
    hour = {name: sum(period[name] for period in periods) for name in COUNTED}
    if not listed.is_whole:
        return Activity(None, None, hour)
    return Activity(listed.finished, listed.parts, hour)
