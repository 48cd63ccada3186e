"""Names of queues and jobs in Redis, all under the instance's prefix, so that other applications can use the same Redis.

The layout is rq's, with `<prefix>rq` instead of `rq`; rq's tools read it with RQ_KEY_PREFIX set to that.
"""

from __future__ import annotations

EXPIRY = "expiry"
"""Sweeps."""

DELIVERY = "delivery"
"""Deliveries of events to hooks."""

QUEUES = (EXPIRY, DELIVERY)
"""All queues, the most urgent first: sweeps are few. See `tusd_workers.worker` for what happens where they take long."""


class QueueKeys:
    """Keys of the queues of the instance with this key prefix."""

    def __init__(self, prefix: str) -> None:
        self.base = f"{prefix}rq:"
        self.queues = f"{self.base}queues"
        """A set: the keys of all queues."""
        self.workers = f"{self.base}workers"
        """A set: the keys of all workers."""
        self.scheduled = f"{self.base}scheduler:scheduled_jobs"
        """A sorted set: ids of delayed jobs, by the time at which they are due."""
        self.refused = f"{self.base}refused"
        """A list: the last refused jobs, and why."""

    def queue(self, queue: str) -> str:
        """A list: ids of waiting jobs."""
        return f"{self.base}queue:{queue}"

    def job(self, job_id: str) -> str:
        """A hash: one job."""
        return f"{self.base}job:{job_id}"

    def running(self, queue: str) -> str:
        """A sorted set: ids of running jobs, by their deadline."""
        return f"{self.base}wip:{queue}"

    def failed(self, queue: str) -> str:
        """A sorted set: ids of failed jobs, by the time at which the entry expires."""
        return f"{self.base}failed:{queue}"

    def worker(self, name: str) -> str:
        """A hash: one worker; expires soon after it died."""
        return f"{self.base}worker:{name}"

    def set_aside(self, key: str) -> str:
        """Key under which a refused job is kept for a week."""
        return f"{self.base}refused:{key.removeprefix(self.base)}"


def job_id(schedule: str, slot: int) -> str:
    """Return the id of a scheduled job, the same in every scheduler. slot: number of the run."""
    return f"{schedule}-{slot}"
