"""Jobs that are put off: they lie in Redis until a scheduler (`scheduler.py`) puts them into their queue.

Like it, this knows of rq-scheduler, so that nothing else has to.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast

from redis import Redis
from rq_scheduler import Scheduler as RQScheduler


def enqueue_at(
    connection: Redis, when: float, job: str, *args: str, job_id: str, queue: str, timeout: int
) -> None:
    """Puts a job into a queue at a time, in seconds since the epoch, if a scheduler runs then. Raises RedisError.

    job: the name of a function. queue: as rq calls it. timeout: seconds that the job may take.
    """
    RQScheduler(connection=connection).enqueue_at(
        datetime.fromtimestamp(when, UTC).replace(tzinfo=None),
        job,
        *args,
        job_id=job_id,
        queue_name=queue,
        timeout=timeout,
        job_result_ttl=0,
    )


def scheduled(connection: Redis) -> dict[str, float]:
    """The ids of all jobs that are to be put into queues, whoever's, and when. Raises RedisError."""
    found = connection.zrange(RQScheduler.scheduled_jobs_key, 0, -1, withscores=True)
    return {job.decode(): when for job, when in cast("list[tuple[bytes, float]]", found)}
