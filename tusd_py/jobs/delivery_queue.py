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
from typing import cast

from redis import Redis
from rq import Queue

from tusd_py.jobs import table as job_table
from tusd_py.jobs.delayed import PutOff
from tusd_py.jobs.queues import DELIVERY, QueueKeys
from tusd_py.jobs.rq_classes import queue_class, set_aside_unless

_AT_ONCE = 500
"""Jobs in one command."""
_LATE = 30.0
"""Seconds after which a job that was to be put into the queue is no longer believed to be by a scheduler."""
_PREFIX = "deliver-"
"""What the ids of these jobs begin with."""


class Deliveries:
    """The queue of one instance. prefix: of its keys."""

    def __init__(self, connection: Redis, *, prefix: str) -> None:
        self._connection = connection
        self._keys = QueueKeys(prefix)
        self._queue = queue_class(prefix)(DELIVERY, connection=connection)
        self._put_off = PutOff(connection, prefix)

    def add(self, upload_ids: Collection[str]) -> None:
        """Has a worker look at these uploads, as soon as one is free."""
        kind = job_table.KINDS[job_table.DELIVER]
        for some in _batches(upload_ids):
            self._queue.enqueue_many(
                [
                    Queue.prepare_data(
                        kind.name,
                        (upload_id,),
                        timeout=kind.timeout,
                        result_ttl=0,
                        failure_ttl=kind.failure_ttl,
                        description="delivery",
                        job_id=self._job_id(upload_id),
                    )
                    for upload_id in some
                ]
            )

    def add_at(self, upload_id: str, when: float) -> None:
        """Has a worker look at an upload at that time, in seconds since the epoch."""
        self._put_off.add(
            math.ceil(when),
            job_table.DELIVER,
            (upload_id,),
            # The same for the same time, so that several that see to the same do not become ever more.
            job_id=f"{_PREFIX}{_digest(upload_id)}-{math.ceil(when)}",
            queue=DELIVERY,
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
        set_aside_unless(self._connection, self._keys, self._queue.key, "list")
        queued = cast("list[bytes]", self._connection.lrange(self._queue.key, 0, -1))
        ids = [each.decode("ascii", "replace") for each in queued]
        ids += [job for job, when in self._put_off.times().items() if when > late]
        length = len(_PREFIX)
        return {job[length:].partition("-")[0] for job in ids if job.startswith(_PREFIX)}

    def _job_id(self, upload_id: str) -> str:
        """Another one each time: rq forgets a job by its id when it is done, and must not forget the one that came after."""
        return f"{_PREFIX}{_digest(upload_id)}-{secrets.token_hex(6)}"


def _digest(upload_id: str) -> str:
    return hashlib.sha256(upload_id.encode()).hexdigest()[:24]


def _batches(upload_ids: Iterable[str]) -> Iterator[list[str]]:
    rest = list(upload_ids)
    for start in range(0, len(rest), _AT_ONCE):
        yield rest[start : start + _AT_ONCE]
