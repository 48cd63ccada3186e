"""Reads the state of queues and workers from Redis; `tusd_workers.status` judges it.

Everything is read as plain values, so that foreign data (another type, an invalid time) only counts as unknown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from typing import TypeVar, cast

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError
from rq.utils import str_to_date

from tusd_py.jobs.queues import QUEUES, QueueKeys
from tusd_py.jobs.status import QueueStatus

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker. heard: seconds since its last heartbeat; job: id of its current job."""

    name: str
    host: str
    pid: int
    state: str
    heard: float
    job: str | None


def queues(connection: Redis, prefix: str) -> list[QueueStatus]:
    """Return the state of every queue of the instance with this key prefix. Raises RedisError."""
    keys = QueueKeys(prefix)
    return [_queue(connection, keys, queue) for queue in QUEUES]


def workers(connection: Redis, prefix: str) -> list[WorkerStatus]:
    """Return the workers of an instance that are alive or died within the last minutes. Raises RedisError."""
    keys = QueueKeys(prefix)
    names: set[bytes] = _or(set(), lambda: connection.smembers(keys.workers))
    begin = keys.worker("").encode()
    found: list[WorkerStatus] = []
    for key in sorted(names):
        fields: dict[bytes, bytes] = {}
        if key.startswith(begin):
            fields = _or({}, lambda key=key: connection.hgetall(key))  # type: ignore[misc]
        if not fields:
            # Its entry expired, or is not one of a worker.
            connection.srem(keys.workers, key)
        elif b"death" not in fields:
            found.append(_worker(key[len(begin) :], fields))
    return found


def _queue(connection: Redis, keys: QueueKeys, queue: str) -> QueueStatus:
    first: list[bytes] = _or([], lambda: connection.lrange(keys.queue(queue), 0, 0))
    since = None
    if first:
        job = keys.job(first[0].decode("ascii", "replace"))
        since = _since(_or(None, lambda: connection.hget(job, "enqueued_at")))
    now = time.time()
    return QueueStatus(
        name=queue,
        waiting=_or(0, lambda: connection.llen(keys.queue(queue))),
        running=_or(0, lambda: connection.zcount(keys.running(queue), now, "+inf")),
        failed=_or(0, lambda: connection.zcount(keys.failed(queue), now, "+inf")),
        oldest=since,
    )


def _or(default: T, ask: Callable[[], object]) -> T:
    """Return the reply of Redis, or `default` for a key of another type. Raises RedisError."""
    try:
        return cast(T, ask())
    except NoPermissionError:
        raise
    except ResponseError:
        return default


def _worker(name: bytes, fields: Mapping[bytes, bytes]) -> WorkerStatus:
    def text(field: str) -> str:
        return fields.get(field.encode(), b"").decode("utf-8", "replace")

    return WorkerStatus(
        name=name.decode("utf-8", "replace"),
        host=text("hostname"),
        pid=int(text("pid")) if text("pid").isdecimal() else 0,
        state=text("state") or "unknown",
        heard=_since(fields.get(b"last_heartbeat")) or 0.0,
        job=text("current_job") or None,
    )


def _since(moment: bytes | None) -> float | None:
    """Return the seconds since a time as rq writes it (UTC, with or without a zone), or None if it is invalid."""
    if not moment:
        return None
    with suppress(ValueError, OverflowError):
        found = str_to_date(moment)
        aware = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
        return max(0.0, time.time() - aware.timestamp())
    return None
