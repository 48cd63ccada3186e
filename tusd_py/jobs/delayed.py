"""Jobs that are put off: they lie in Redis until a scheduler (`scheduler.py`) puts them into their queue."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

from redis import Redis

from tusd_py.jobs.queues import QueueKeys
from tusd_py.jobs.rq_classes import scheduler_class, set_aside_unless


class PutOff:
    """The jobs of an instance that are put off. prefix: of its keys. Every method raises RedisError."""

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
        """Put a job into a queue at a time, in seconds since the epoch, if a scheduler runs then.

        job: its name in `job_table`. ttl: seconds after which it is left out if nobody has begun it.
        """
        set_aside_unless(self._connection, self._keys, self._keys.job(job_id), "hash")
        set_aside_unless(self._connection, self._keys, self._keys.scheduled(), "zset")
        self._scheduler.enqueue_at(
            # rq-scheduler wants times in UTC without saying so.
            datetime.fromtimestamp(when, UTC).replace(tzinfo=None),
            job,
            *arguments,
            job_id=job_id,
            queue_name=queue,
            job_result_ttl=0,
            job_ttl=ttl,
        )

    def enqueue_due(self, now: float) -> None:
        """Put into their queues what is due, unless another scheduler is at it."""
        if self._scheduler.acquire_lock():
            try:
                self._scheduler.enqueue_due(now)
            finally:
                self._scheduler.remove_lock()

    def time_of(self, job_id: str) -> float | None:
        """To when a job is put off; None if it is not."""
        return self._connection.zscore(self._keys.scheduled(), job_id)

    def times(self) -> dict[str, float]:
        """The ids of all jobs that are put off, and to when."""
        set_aside_unless(self._connection, self._keys, self._keys.scheduled(), "zset")
        found = self._connection.zrange(self._keys.scheduled(), 0, -1, withscores=True)
        pairs = cast("list[tuple[bytes, float]]", found)
        return {job.decode("ascii", "replace"): when for job, when in pairs}
