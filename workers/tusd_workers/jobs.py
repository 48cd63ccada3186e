"""Queues and workers as rq has them in Redis. Not for: what is wrong with them, which is said by `status.py`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from redis import Redis
from rq import Queue, Worker
from rq.job import Job
from rq.worker import BaseWorker

from tusd_py.state.jobs import QueueStatus
from tusd_workers.queues import QUEUES, queue_name


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker. heard: seconds since it last said that it lives; job: the id of what it does."""

    name: str
    host: str
    pid: int
    state: str
    heard: float
    job: str | None


def queues(connection: Redis, prefix: str) -> list[QueueStatus]:
    """Every queue of an instance; prefix is that of its keys. Raises RedisError."""
    return [_queue(connection, queue_name(prefix, queue), queue) for queue in QUEUES]


def workers(connection: Redis, prefix: str) -> list[WorkerStatus]:
    """The workers of an instance that live, or died within the last minutes. Raises RedisError."""
    names = {queue_name(prefix, queue) for queue in QUEUES}
    return [
        _worker(worker)
        for worker in Worker.all(connection=connection)
        if set(worker.queue_names()) & names
    ]


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
