"""Jobs that a version before this one put into Redis: pickles, under rq's own names. They are replaced, and never unpickled.

What such a job stands for is known without it: events lie in the outbox, and sweeps are scheduled anew. So only ids are read
here; a job goes when what it stands for has been queued in today's form. Workers of the older version that still run take
their own jobs as before. Not for: jobs of other applications, which are not looked at.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from typing import cast

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from tusd_py import logs
from tusd_py.jobs.queues import QUEUES

logger = logging.getLogger(__name__)

_AT_ONCE = 1000
_SCHEDULED = "rq:scheduler:scheduled_jobs"
_LATE = 60.0
"""Seconds after which no scheduler of the older version is believed to see to a job any more."""
_FOREIGN = re.compile(r"[^A-Za-z0-9]+")
_OURS = r"(?:sweep-due|sweep-all|sweep-tuspyservers|deliver-[0-9a-f]{24})-[0-9a-f]+"
"""What the ids of jobs ended with."""


def instance_word(prefix: str) -> str:
    """What the names of an instance's queues and jobs began with; prefix: of its keys."""
    word = _FOREIGN.sub("-", prefix).strip("-") or "tusd"
    if prefix == f"{word}:":
        return word
    return f"{word}-{hashlib.sha256(prefix.encode()).hexdigest()[:8]}"


class LegacyJobs:
    """The older version's jobs of one instance. prefix: of its keys. Methods raise RedisError, but not for a lack of rights:
    who may not see them has none."""

    def __init__(self, connection: Redis, prefix: str) -> None:
        self._connection = connection
        word = instance_word(prefix)
        self._queues = [f"rq:queue:{word}-{queue}" for queue in QUEUES]
        self._ours = re.compile(f"{re.escape(word)}-{_OURS}")
        self._is_permitted = True

    def replace_queued(self, queue_anew: Callable[[], object]) -> int:
        """Replace the jobs that wait; returns how many these were.

        queue_anew: sees that what they stand for is queued. It is called before they are removed, so that none is lost if this
        process dies; what it raises is raised.
        """
        if not self._is_permitted:
            return 0
        count = 0
        try:
            for queue in self._queues:
                found = cast("list[bytes]", self._connection.lrange(queue, 0, _AT_ONCE - 1))
                if found:
                    queue_anew()
                    self._remove(queue, found)
                    count += len(found)
        except NoPermissionError:
            self._is_permitted = False
        except ResponseError as problem:
            # Not a list: whatever it is, it is not ours.
            logger.debug("jobs of an older version were not looked for: %s", problem)
        return count

    def remove_put_off(self, now: float | None = None) -> None:
        """Remove jobs that were put off and that nobody puts into a queue any more; others' are left alone."""
        if not self._is_permitted:
            return
        now = self._now() if now is None else now
        try:
            found = self._connection.zrangebyscore(
                _SCHEDULED, "-inf", now - _LATE, start=0, num=_AT_ONCE
            )
            for raw_id in cast("list[bytes]", found):
                if self._is_ours(raw_id):
                    self._connection.zrem(_SCHEDULED, raw_id)
                    self._connection.delete(b"rq:job:" + raw_id)
                    logs.event(logger, logging.INFO, "older job removed", job=raw_id.decode())
        except NoPermissionError:
            self._is_permitted = False
        except ResponseError as problem:
            logger.debug("jobs of an older version were not looked for: %s", problem)

    def _remove(self, queue: str, found: list[bytes]) -> None:
        for raw_id in found:
            self._connection.lrem(queue, 1, cast(str, raw_id))
            if self._is_ours(raw_id):
                self._connection.delete(b"rq:job:" + raw_id)
                logs.event(logger, logging.INFO, "older job replaced", job=raw_id.decode())
            else:
                logs.event(
                    logger,
                    logging.ERROR,
                    "job refused",
                    job=repr(raw_id[:64]),
                    reason="it stood in a queue of an older version and is none of ours",
                )

    def _is_ours(self, raw_id: bytes) -> bool:
        return self._ours.fullmatch(raw_id.decode("ascii", "replace")) is not None

    def _now(self) -> float:
        seconds, _ = self._connection.time()
        return float(seconds)
