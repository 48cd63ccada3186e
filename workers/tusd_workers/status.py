"""What there is to know about the jobs of an instance: queues, workers, the schedule, the last sweeps, and what is wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from redis import Redis
from rq import Queue, Worker
from rq.job import Job
from rq.worker import BaseWorker

from tusd_py.settings.model import Settings
from tusd_py.state import Keys, State
from tusd_py.state.registry import Registry, RegistryCounts, SweepRecord
from tusd_workers.connection import connect
from tusd_workers.queues import QUEUES, queue_name
from tusd_workers.scheduler import Scheduler, schedules

_OVERDUE = 3
"""Times the sweep's interval after which something is wrong with the sweep."""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue. waiting, running, failed: jobs; oldest: seconds for which the first one has been waiting."""

    name: str
    waiting: int
    running: int
    failed: int
    oldest: float | None


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker. heard: seconds since it last said that it lives; job: the id of what it does."""

    name: str
    host: str
    pid: int
    state: str
    heard: float
    job: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """Everything. schedule: seconds since the epoch by name; scheduler: seconds since one last looked, None if none runs."""

    registry: RegistryCounts
    sweeps: list[SweepRecord]
    queues: list[QueueStatus]
    workers: list[WorkerStatus]
    scheduler: float | None
    schedule: dict[str, float]

    def problems(self, settings: Settings) -> Iterator[str]:
        """What an operator has to look at, in words."""
        if not self.workers:
            yield "no worker runs"
        if self.scheduler is None:
            yield "no scheduler runs"
        for queue in self.queues:
            if queue.failed:
                yield f"{queue.failed} jobs failed in the queue {queue.name}"
        last = max((record.ended for record in self.sweeps), default=0.0)
        if time.time() - last > _OVERDUE * settings.sweep_interval + 60:
            yield "nothing has been swept for too long"


def collect(settings: Settings, url: str) -> Status:
    """Asks the Redis. Raises RedisError, StateUnavailable."""
    prefix = settings.redis_prefix
    with connect(url) as connection:
        looked = connection.get(Keys(prefix).scheduler())
        names = {queue_name(prefix, queue): queue for queue in QUEUES}
        counts, sweeps = asyncio.run(_registry(settings, url))
        return Status(
            registry=counts,
            sweeps=sweeps,
            queues=[_queue(connection, name, ours) for name, ours in names.items()],
            workers=[
                _worker(worker)
                for worker in Worker.all(connection=connection)
                if set(worker.queue_names()) & set(names)
            ],
            scheduler=time.time() - float(looked) if isinstance(looked, bytes) else None,
            schedule=Scheduler(connection, schedules(settings), prefix=prefix).upcoming(),
        )


async def _registry(settings: Settings, url: str) -> tuple[RegistryCounts, list[SweepRecord]]:
    state = State(url, prefix=settings.redis_prefix, timeout=settings.redis_timeout)
    await state.start()
    try:
        registry = Registry(state)
        return await registry.counts(time.time()), await registry.sweeps()
    finally:
        await state.stop()


def _queue(connection: Redis, name: str, ours: str) -> QueueStatus:
    queue = Queue(name, connection=connection)
    waiting = queue.get_job_ids(0, 1)
    job = Job.fetch_many(waiting, connection=connection)[0] if waiting else None
    return QueueStatus(
        name=ours,
        waiting=queue.count,
        running=queue.started_job_registry.count,
        failed=queue.failed_job_registry.count,
        oldest=None if job is None else _since(job.enqueued_at),
    )


def _worker(worker: BaseWorker) -> WorkerStatus:
    return WorkerStatus(
        name=worker.name,
        host=worker.hostname or "",
        pid=worker.pid or 0,
        state=worker.get_state(),
        heard=_since(worker.last_heartbeat) or 0.0,
        job=worker.get_current_job_id(),
    )


def _since(moment: datetime | None) -> float | None:
    """Seconds since a time of rq's, which is in UTC whether it says so or not."""
    if moment is None:
        return None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, time.time() - aware.timestamp())
