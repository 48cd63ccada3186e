"""Replaces the jobs of an earlier version, which are pickles under rq's own key names. They are never unpickled.

Their content is not needed: events are in the outbox, and sweeps are scheduled again. So only ids are read, and a job is
removed after its work was queued in the current form. Workers of the earlier version that still run take their own jobs as
before. Jobs of other applications are left alone.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from tusd_py import logs
from tusd_py.jobs.queues import QUEUES

logger = logging.getLogger(__name__)

_BATCH = 1000
_SCHEDULED = "rq:scheduler:scheduled_jobs"
_OVERDUE_SECONDS = 60.0
"""Age at which a delayed job counts as abandoned by schedulers of the earlier version."""
_FOREIGN = re.compile(r"[^A-Za-z0-9]+")
_OURS = r"(?:sweep-due|sweep-all|sweep-tuspyservers|deliver-[0-9a-f]{24})-[0-9a-f]+"
"""End of the ids of jobs."""


def instance_word(prefix: str) -> str:
    """Return the start of the names of queues and jobs of the instance with this key prefix."""
    word = _FOREIGN.sub("-", prefix).strip("-") or "tusd"
    if prefix == f"{word}:":
        return word
    return f"{word}-{hashlib.sha256(prefix.encode()).hexdigest()[:8]}"


class LegacyJobs:
    """Jobs of the earlier version of the instance with this key prefix.

    Methods raise RedisError, except for missing permissions: a user who may not read these keys has no such jobs.
    """

    def __init__(self, connection: Redis, prefix: str) -> None:
        self._connection = connection
        word = instance_word(prefix)
        self._queues = [f"rq:queue:{word}-{queue}" for queue in QUEUES]
        self._ours = re.compile(f"{re.escape(word)}-{_OURS}")
        self._is_permitted = True

    def replace_queued(self, queue_anew: Callable[[], object]) -> None:
        """Replace the queued jobs.

        queue_anew: queues their work. It is called before they are removed, so that none is lost if this process dies; its
        errors are passed on.
        """
        with self._reading():
            for queue in self._queues if self._is_permitted else ():
                found = cast("list[bytes]", self._connection.lrange(queue, 0, _BATCH - 1))
                if found:
                    queue_anew()
                    self._remove(queue, found)

    def remove_delayed(self) -> None:
        """Remove overdue delayed jobs, which no scheduler queues; those of other applications are left alone."""
        if not self._is_permitted:
            return
        seconds, _ = self._connection.time()
        with self._reading():
            found = self._connection.zrangebyscore(
                _SCHEDULED, "-inf", seconds - _OVERDUE_SECONDS, start=0, num=_BATCH
            )
            for raw_id in cast("list[bytes]", found):
                if self._is_ours(raw_id):
                    self._connection.zrem(_SCHEDULED, raw_id)
                    self._delete(raw_id, "older job removed")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except NoPermissionError:
            self._is_permitted = False
        except ResponseError as problem:
            # A key of another type, so not one of ours.
            logger.debug("jobs of an older version were not looked for: %s", problem)

    def _remove(self, queue: str, found: list[bytes]) -> None:
        for raw_id in found:
            self._connection.lrem(queue, 1, cast(str, raw_id))
            if self._is_ours(raw_id):
                self._delete(raw_id, "older job replaced")
            else:
                logs.event(
                    logger,
                    logging.ERROR,
                    "job refused",
                    job=repr(raw_id[:64]),
                    reason="it was in a queue of an older version and is not one of our jobs",
                )

    def _delete(self, raw_id: bytes, event: str) -> None:
        self._connection.delete(b"rq:job:" + raw_id)
        logs.event(logger, logging.INFO, event, job=raw_id.decode())

    def _is_ours(self, raw_id: bytes) -> bool:
        return self._ours.fullmatch(raw_id.decode("ascii", "replace")) is not None
