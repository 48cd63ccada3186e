"""rq's queues and jobs for one instance: under its own keys, in JSON, and restricted to the table of jobs.

rq imports functions, callbacks and classes by names that it finds in Redis, and unpickles by default. Here a job is read in one
place, `TableJob.restore`, which refuses everything that `jobs.table` does not list and takes only a name, arguments and times
from Redis: no callbacks, dependencies, groups, repetitions, webhooks, limits or results.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import cast

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError
from rq import Queue
from rq.exceptions import DequeueTimeout, NoSuchJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty
from rq.utils import str_to_date
from rq_scheduler import Scheduler as RQScheduler

from tusd_py import logs
from tusd_py.jobs import table as job_table
from tusd_py.jobs.queues import QUEUES, QueueKeys
from tusd_py.jobs.table import JobKind, JobRefused

logger = logging.getLogger(__name__)

_REFUSED_KEPT = 7 * 86_400
"""Seconds for which refused jobs are kept for inspection."""
_REFUSED_LISTED = 1000
"""Length of the list of refused jobs."""
_BATCH = 1000
"""Delayed jobs queued at a time."""
_SERVER_VERSION = (6, 2, 0)
"""Oldest supported version; nothing here needs a newer one."""

_SET_ASIDE_UNLESS = """
local found = redis.call('TYPE', KEYS[1]).ok
if found == ARGV[1] or found == 'none' then return false end
redis.call('RENAME', KEYS[1], KEYS[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return found
"""
"""Rename a key unless it has a type, and return the other type that it has."""

_FORBIDDEN_FIELDS = frozenset(
    {
        "success_callback_name",
        "failure_callback_name",
        "stopped_callback_name",
        "group_id",
        "dependency_id",
        "dependency_ids",
        "webhooks",
        "meta",
        "repeats_left",
        "repeat_intervals",
        "retries_left",
        "retry_intervals",
        "rate_limit_key",
        "rate_limit_concurrency",
        "result",
    }
)
"""Fields that must be empty, because they make rq load or do something, or because our jobs have no use for them."""


class TableJob(Job):
    """A job of `jobs.table`."""

    kind: JobKind
    _arguments: tuple[str, ...]

    def __init__(
        self,
        id: str | None = None,
        connection: Redis | None = None,
        serializer: object = None,
    ) -> None:
        super().__init__(id, connection, JSONSerializer)

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Read the job from its hash. Raises JobRefused for a foreign job, NoSuchJobError if there is none."""
        fields = {name.decode("ascii", "replace"): value for name, value in raw_data.items()}
        data = fields.get("data")
        if data is None:
            raise NoSuchJobError("a job without content")
        self.kind, self._arguments = job_table.parse(data)
        for name in sorted(_FORBIDDEN_FIELDS & fields.keys()):
            if fields[name]:
                raise JobRefused(f"it has a {name}")
        self.data = self.serializer.dumps((self.kind.name, None, self._arguments, {}))
        self.timeout = self.kind.timeout
        self.failure_ttl = self.kind.failure_ttl
        self.result_ttl = 0
        self.description = self.kind.name
        self._status = JobStatus.QUEUED
        try:
            self.ttl = int(fields["ttl"]) if fields.get("ttl") else None
            self.origin = fields.get("origin", b"").decode()
            self.enqueued_at = _date(fields.get("enqueued_at"))
            self.created_at = _date(fields.get("created_at")) or self.created_at
        except ValueError:
            raise JobRefused("its fields are not those of a job") from None
        if self.origin not in QUEUES:
            raise JobRefused("it is of another queue")

    def perform(self) -> None:
        """Run the job."""
        self.kind.run(self._arguments)

    @property
    def func(self) -> None:
        """None: functions are not imported by name."""
        return


class InstanceQueue(Queue):
    """A queue of one instance."""

    keys: QueueKeys

    def __init__(
        self,
        name: str = "default",
        connection: Redis | None = None,
        job_class: type[Job] | None = None,
        serializer: object = None,
        death_penalty_class: type[BaseDeathPenalty] | None = None,
        **_options: object,
    ) -> None:
        super().__init__(
            name,
            connection=connection,
            job_class=job_class or self.job_class,
            serializer=JSONSerializer,
            death_penalty_class=death_penalty_class or Queue.death_penalty_class,
        )

    def get_redis_server_version(self) -> tuple[int, int, int]:
        """Return the oldest supported version instead of asking Redis."""
        return _SERVER_VERSION

    @classmethod
    def dequeue_any(  # noqa: PLR0917 -- rq's
        cls,
        queues: Iterable[Queue],
        timeout: int | None,
        connection: Redis,
        job_class: type[Job] | None = None,
        serializer: object = None,
        death_penalty_class: type[BaseDeathPenalty] | None = None,
    ) -> tuple[Job, Queue] | None:
        """Wait for a job of the table, and set aside others. Raises DequeueTimeout, RedisError.

        If this process dies now and the job is lost, the sweep queues it again.
        """
        by_key = {queue.key.encode(): queue for queue in queues}
        while True:
            try:
                found = connection.blpop(list(by_key), timeout or 1)
            except ResponseError as problem:
                if not _is_wrong_type(problem):
                    raise
                for key in by_key:
                    set_aside_unless(connection, cls.keys, key.decode(), "list")
                continue
            if found is None:
                raise DequeueTimeout(timeout, [queue.key for queue in by_key.values()])
            key, raw_id = cast("tuple[bytes, bytes]", found)
            queue = by_key[key]
            job = fetch(cast("type[TableJob]", queue.job_class), connection, cls.keys, raw_id)
            if job is not None:
                return job, queue


@lru_cache
def job_class(prefix: str) -> type[TableJob]:
    """Return rq's job class for an instance with this key prefix, which rq takes from the class."""
    keys = QueueKeys(prefix)
    return type("InstanceJob", (TableJob,), {"redis_job_namespace_prefix": keys.job("")})


@lru_cache
def queue_class(prefix: str) -> type[InstanceQueue]:
    """Return rq's queue class for an instance with this key prefix."""
    keys = QueueKeys(prefix)
    return type(
        "PrefixedQueue",
        (InstanceQueue,),
        {
            "keys": keys,
            "job_class": job_class(prefix),
            "redis_queue_namespace_prefix": keys.queue(""),
            "redis_queues_keys": keys.queues,
        },
    )


class InstanceScheduler(RQScheduler):  # type: ignore[misc]  # it has no types
    """rq-scheduler's delayed jobs, in a set of the instance: those of other applications are neither read nor moved."""

    keys: QueueKeys

    def enqueue_due(self, now: float) -> None:
        """Queue the jobs that are due, and set aside those that are not in the table. Raises RedisError."""
        key = self.scheduled_jobs_key
        set_aside_unless(self.connection, self.keys, key, "zset")
        for raw_id in self.connection.zrangebyscore(key, "-inf", now, start=0, num=_BATCH):
            job = fetch(self.job_class, self.connection, self.keys, raw_id)
            if job is not None:
                queue = self.queue_class(job.origin, connection=self.connection)
                set_aside_unless(self.connection, self.keys, queue.key, "list")
                queue.enqueue_job(job)
            self.connection.zrem(key, raw_id)


@lru_cache
def scheduler_class(prefix: str) -> type[InstanceScheduler]:
    """Return rq-scheduler's class for an instance with this key prefix."""
    keys = QueueKeys(prefix)
    return type(
        "PrefixedScheduler",
        (InstanceScheduler,),
        {
            "keys": keys,
            "redis_scheduler_namespace_prefix": f"{keys.base}scheduler_instance:",
            "scheduler_key": f"{keys.base}scheduler",
            "scheduler_lock_key": f"{keys.base}scheduler_lock",
            "scheduled_jobs_key": keys.scheduled,
            "queue_class": queue_class(prefix),
            "job_class": job_class(prefix),
        },
    )


def fetch(
    kind: type[TableJob], connection: Redis, keys: QueueKeys, raw_id: bytes
) -> TableJob | None:
    """Read a job; None if there is none, or if it is refused and set aside. Raises RedisError."""
    try:
        job_id = raw_id.decode("ascii")
        job = kind(job_id, connection=connection)
    except ValueError:
        _record_refusal(connection, keys, repr(raw_id[:64]), "its id is not that of a job")
        return None
    try:
        job.refresh()  # type: ignore[no-untyped-call]
    except NoSuchJobError:
        return None
    except JobRefused as problem:
        refuse(connection, keys, job_id, str(problem))
        return None
    except ResponseError as problem:
        if not _is_wrong_type(problem):
            raise
        refuse(connection, keys, job_id, "it is not stored as a job")
        return None
    return job


def refuse(connection: Redis, keys: QueueKeys, job_id: str, reason: str) -> None:
    """Log a refused job, and keep it for a week under a key where it is not run. Raises RedisError."""
    _set_aside(connection, keys, keys.job(job_id))
    _record_refusal(connection, keys, job_id, reason)


def set_aside_unless(connection: Redis, keys: QueueKeys, key: str, kind: str) -> None:
    """Rename a key of ours that has another type than `kind`. Raises RedisError."""
    if cast(bytes, connection.type(key)).decode() in (kind, "none"):
        return
    # Looked at again with the renaming: another process may have done so, and queued jobs under this key.
    aside = keys.set_aside(key)
    found = connection.eval(_SET_ASIDE_UNLESS, 2, key, aside, kind, str(_REFUSED_KEPT))
    if found is not None:
        type_name = cast(bytes, found).decode()
        _record_refusal(connection, keys, key, f"it is a {type_name}, not a {kind}")


def _set_aside(connection: Redis, keys: QueueKeys, key: str) -> None:
    aside = keys.set_aside(key)
    try:
        connection.rename(key, aside)
    except NoPermissionError:
        raise
    except ResponseError:
        # The key no longer exists.
        return
    connection.expire(aside, _REFUSED_KEPT)


def _record_refusal(connection: Redis, keys: QueueKeys, what: str, reason: str) -> None:
    logs.event(logger, logging.ERROR, "job refused", job=what, reason=reason)
    record = json.dumps({"job": what, "reason": reason, "at": time.time()})
    with suppress(ResponseError), connection.pipeline(transaction=False) as pipeline:
        pipeline.lpush(keys.refused, record)
        pipeline.ltrim(keys.refused, 0, _REFUSED_LISTED - 1)
        pipeline.execute()


def _is_wrong_type(problem: ResponseError) -> bool:
    return str(problem).startswith("WRONGTYPE")


def _date(text: bytes | None) -> datetime | None:
    return str_to_date(text) if text else None
