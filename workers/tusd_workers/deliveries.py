"""The queue of deliveries: which uploads have events that workers are to tell, in rq's world.

A job is "look at the outbox of this upload", no more; that there are several for one upload does no harm. What is in Redis may
be lost at any time: what waits is in the outbox, and `add_missing` puts into the queue what is not there. Blocking; every
method raises RedisError.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Collection, Iterable, Iterator

from redis import Redis
from rq import Queue

from tusd_workers import later
from tusd_workers.queues import DELIVERY, job_prefix, queue_name

JOB = "tusd_workers.delivery.deliver"
"""By name, as servers put into the queue what only workers can do."""

_TIMEOUT = 6 * 3600
"""Seconds. What a hook may take has limits of its own."""
_FAILURE_TTL = 3600
"""Seconds for which rq remembers a job that failed. The outbox knows better."""
_AT_ONCE = 500
"""Jobs in one command."""
_LATE = 30.0
"""Seconds after which a job that was to be put into the queue is no longer believed to be by a scheduler."""


class Deliveries:
    """The queue of one instance. prefix: of its keys."""

    def __init__(self, connection: Redis, *, prefix: str) -> None:
        self._connection = connection
        self._name = queue_name(prefix, DELIVERY)
        self._prefix = job_prefix(prefix, "deliver")
        self._queue = Queue(self._name, connection=connection)

    def add(self, upload_ids: Collection[str]) -> None:
        """Has a worker look at these uploads, as soon as one is free."""
        for some in _batches(upload_ids):
            self._queue.enqueue_many(
                [
                    Queue.prepare_data(
                        JOB,
                        (upload_id,),
                        timeout=_TIMEOUT,
                        result_ttl=0,
                        failure_ttl=_FAILURE_TTL,
                        description="delivery",
                        job_id=self._job_id(upload_id),
                    )
                    for upload_id in some
                ]
            )

    def add_at(self, upload_id: str, when: float) -> None:
        """Has a worker look at an upload at that time, in seconds since the epoch."""
        later.enqueue_at(
            self._connection,
            math.ceil(when),
            JOB,
            upload_id,
            # The same for the same time, so that several that see to the same do not become ever more.
            job_id=f"{self._prefix}{_digest(upload_id)}-{math.ceil(when)}",
            queue=self._name,
            timeout=_TIMEOUT,
        )

    def add_missing(self, upload_ids: Collection[str]) -> int:
        """Like `add`, for those only for which no job is on its way; returns how many these were."""
        known = self._known()
        missing = [each for each in upload_ids if _digest(each) not in known]
        self.add(missing)
        return len(missing)

    def _known(self) -> set[str]:
        """Digests of the uploads for which there are jobs."""
        late = time.time() - _LATE
        ids = [*self._queue.get_job_ids()]
        ids += [job for job, when in later.scheduled(self._connection).items() if when > late]
        length = len(self._prefix)
        return {job[length:].partition("-")[0] for job in ids if job.startswith(self._prefix)}

    def _job_id(self, upload_id: str) -> str:
        """Another one each time: rq forgets a job by its id when it is done, and must not forget the one that came after."""
        return f"{self._prefix}{_digest(upload_id)}-{secrets.token_hex(6)}"


def _digest(upload_id: str) -> str:
    return hashlib.sha256(upload_id.encode()).hexdigest()[:24]


def _batches(upload_ids: Iterable[str]) -> Iterator[list[str]]:
    rest = list(upload_ids)
    for start in range(0, len(rest), _AT_ONCE):
        yield rest[start : start + _AT_ONCE]
