"""The names of queues and jobs in Redis: all under the prefix of the instance, so that others may use the same Redis.

They are laid out as rq does, with `<prefix>rq` in the place of its `rq`; its own tools read them with RQ_KEY_PREFIX set so.
"""

from __future__ import annotations

EXPIRY = "expiry"
"""Sweeps."""

DELIVERY = "delivery"
"""Events that hooks are told of."""

QUEUES = (EXPIRY, DELIVERY)
"""Every queue, the most urgent first: sweeps are few and soon done."""


class QueueKeys:
    """The keys of the queues of one instance; prefix: that of its keys."""

    __slots__ = ("base",)

    def __init__(self, prefix: str) -> None:
        self.base = f"{prefix}rq:"

    def queue(self, queue: str) -> str:
        """A list: ids of the jobs that wait."""
        return f"{self.base}queue:{queue}"

    def queues(self) -> str:
        """A set: the keys of all queues."""
        return f"{self.base}queues"

    def job(self, job_id: str) -> str:
        """A hash: one job."""
        return f"{self.base}job:{job_id}"

    def running(self, queue: str) -> str:
        """A sorted set: ids of jobs in hand, by the time at which they must be done."""
        return f"{self.base}wip:{queue}"

    def failed(self, queue: str) -> str:
        """A sorted set: ids of jobs that failed, by the time until which that is remembered."""
        return f"{self.base}failed:{queue}"

    def worker(self, name: str) -> str:
        """A hash: one worker, gone soon after it has died."""
        return f"{self.base}worker:{name}"

    def workers(self) -> str:
        """A set: the keys of all workers."""
        return f"{self.base}workers"

    def scheduled(self) -> str:
        """A sorted set: ids of jobs by the time at which they are to be put into their queues."""
        return f"{self.base}scheduler:scheduled_jobs"

    def refused(self) -> str:
        """A list: which jobs were refused last, and why."""
        return f"{self.base}refused"

    def set_aside(self, key: str) -> str:
        """Where something is kept that was refused; gone after a week."""
        return f"{self.base}refused:{key.removeprefix(self.base)}"


def job_id(schedule: str, slot: int) -> str:
    """The id of a scheduled job. slot: which one in the row of them; every scheduler arrives at the same id."""
    return f"{schedule}-{slot}"
