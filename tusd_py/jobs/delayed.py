"""Delayed jobs: they stay in Redis until a scheduler (`tusd_workers.scheduler`) queues them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

from redis import Redis

from tusd_py.jobs.queues import QueueKeys
from tusd_py.jobs.rq_classes import scheduler_class, set_aside_unless

KEPT_SECONDS = 2 * 86_400
"""How long a job is kept that no worker takes. Sweeps are scheduled again, deliveries are found in the outbox."""


class DelayedJobs:
    """The delayed jobs of the instance with this key prefix. Every method raises RedisError."""

    def __init__(self, connection: Redis, prefix: str) -> None:
        self._connection = connection
        self._keys = QueueKeys(prefix)
        self._scheduler = scheduler_class(prefix)(connection=connection)

    def add(
        self,
        when: float,
        job: str,
        arguments: Sequence[str] = (),
        *,
        job_id: str,
        queue: str,
        ttl: int | None = None,
    ) -> None:
        """Queue a job at a time (seconds since the epoch), provided that a scheduler runs then.

        job: its name in `jobs.table`. ttl: seconds after which it is skipped if it has not started.
        """
        set_aside_unless(self._connection, self._keys, self._keys.job(job_id), "hash")
        set_aside_unless(self._connection, self._keys, self._keys.scheduled, "zset")
        self._scheduler.enqueue_at(
            # rq-scheduler expects naive times in UTC.
            datetime.fromtimestamp(when, UTC).replace(tzinfo=None),
            job,
            *arguments,
            job_id=job_id,
            queue_name=queue,
            job_result_ttl=0,
            job_ttl=ttl,
        )
        # rq-scheduler keeps the content for ever, also of a job whose entry was lost.
        wait = math.ceil(max(when - time.time(), 0.0))
        self._connection.expire(self._keys.job(job_id), wait + KEPT_SECONDS)

    def enqueue_due(self, now: float) -> None:
        """Queue the jobs that are due, unless another scheduler is doing so."""
        if self._scheduler.acquire_lock():
            try:
                self._scheduler.enqueue_due(now)
            finally:
                self._scheduler.remove_lock()

    def time_of(self, job_id: str) -> float | None:
        """Return when a job will be queued, or None if it is not delayed."""
        return self._connection.zscore(self._keys.scheduled, job_id)

    def times(self) -> dict[str, float]:
        """Return when each delayed job will be queued, by job id."""
        set_aside_unless(self._connection, self._keys, self._keys.scheduled, "zset")
        found = self._connection.zrange(self._keys.scheduled, 0, -1, withscores=True)
        pairs = cast("list[tuple[bytes, float]]", found)
        return {job.decode("ascii", "replace"): when for job, when in pairs}
