"""The queue of deliveries: uploads with events in the outbox, as rq jobs.

A job only says "process the outbox of this upload"; several for one upload do no harm. Jobs may be lost with Redis: the events
are in the outbox, and `add_missing` queues the jobs that are missing. Blocking; every method raises RedisError.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Collection
from typing import cast

from redis import Redis
from rq import Queue

from tusd_py.jobs import table as job_table
from tusd_py.jobs.delayed import KEPT_SECONDS, DelayedJobs
from tusd_py.jobs.queues import DELIVERY, QueueKeys
from tusd_py.jobs.rq_classes import queue_class, set_aside_unless
from tusd_py.redis.batches import batched
from tusd_py.storage.base import Outbox

_BATCH = 500
"""Jobs in one command."""
_OVERDUE_SECONDS = 30.0
"""Age at which a delayed job counts as lost: no scheduler has queued it."""
_FARTHEST_SECONDS = 4_320.0
"""The longest pause between two attempts. A job that is farther ahead counts as lost: the clock was set back since."""
_PREFIX = "deliver-"
"""Prefix of job ids."""


class Deliveries:
    """The queue of deliveries of the instance with this key prefix."""

    def __init__(self, connection: Redis, *, prefix: str) -> None:
        self._connection = connection
        self._keys = QueueKeys(prefix)
        self._queue = queue_class(prefix)(DELIVERY, connection=connection)
        self._delayed = DelayedJobs(connection, prefix)

    def add(self, upload_ids: Collection[str]) -> None:
        """Queue a job for each of these uploads."""
        kind = job_table.KINDS[job_table.DELIVER]
        for some in batched(upload_ids, _BATCH):
            self._queue.enqueue_many(
                [
                    Queue.prepare_data(
                        kind.name,
                        (upload_id,),
                        timeout=kind.timeout,
                        ttl=KEPT_SECONDS,
                        result_ttl=0,
                        failure_ttl=kind.failure_ttl,
                        description="delivery",
                        job_id=self._job_id(upload_id),
                    )
                    for upload_id in some
                ]
            )

    def add_at(self, upload_id: str, when: float) -> None:
        """Queue a job for an upload at a time, in seconds since the epoch."""
        self._delayed.add(
            math.ceil(when),
            job_table.DELIVER,
            (upload_id,),
            # One id per upload and time, so that repeated requests create one job.
            job_id=f"{_PREFIX}{_digest(upload_id)}-{math.ceil(when)}",
            queue=DELIVERY,
        )

    def add_missing(self, upload_ids: Collection[str]) -> int:
        """Queue a job for each upload that has none, and return how many."""
        if not upload_ids:
            return 0
        known = self._known()
        missing = [each for each in upload_ids if _digest(each) not in known]
        self.add(missing)
        return len(missing)

    def _known(self) -> set[str]:
        """Return the digests of the uploads that have jobs."""
        now = time.time()
        late, early = now - _OVERDUE_SECONDS, now + _FARTHEST_SECONDS
        set_aside_unless(self._connection, self._keys, self._queue.key, "list")
        queued = cast("list[bytes]", self._connection.lrange(self._queue.key, 0, -1))
        ids = [each.decode("ascii", "replace") for each in queued]
        ids += [job for job, when in self._delayed.times().items() if late < when <= early]
        length = len(_PREFIX)
        return {job[length:].partition("-")[0] for job in ids if job.startswith(_PREFIX)}

    def _job_id(self, upload_id: str) -> str:
        """Return a unique id: rq deletes a finished job by its id, and must not delete a later one."""
        return f"{_PREFIX}{_digest(upload_id)}-{secrets.token_hex(6)}"


async def uploads_waiting(outbox: Outbox) -> list[str]:
    """Return the uploads that have events in the outbox. Raises StorageError."""
    return [upload_id async for some in outbox.uploads() for upload_id in some]


def _digest(upload_id: str) -> str:
    return hashlib.sha256(upload_id.encode()).hexdigest()[:24]
