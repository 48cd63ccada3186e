"""Hostile entries in Redis: workers run none of them, survive, and continue with their own jobs."""

from __future__ import annotations

import json
import os
import pickle
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from redis import Redis
from rq import Queue
from rq_scheduler import Scheduler as RQScheduler

from tests.delivery.conftest import House
from tests.delivery.test_processes import SLOW, finish, wait_for_type, wait_until_empty
from tests.hooks.endpoint import Reply
from tests.support.jobs import Job
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of
from tests.support.waiting import wait_until
from tusd_py.jobs.delivery_queue import _digest

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:rq_scheduler"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

BASE = "tusd:rq:"
QUEUE = f"{BASE}queue:delivery"
OLD_QUEUE = "rq:queue:tusd-delivery"
OLD_SCHEDULED = "rq:scheduler:scheduled_jobs"


class Exploit:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def document(name: object, *arguments: object, keywords: object = None) -> bytes:
    return zlib.compress(json.dumps([name, None, list(arguments), keywords or {}]).encode())


def hostile(marker: Path) -> dict[str, dict[str, bytes | str]]:
    """Jobs by their ids, each of which would make `marker` or harm somebody if it were carried out."""
    good = document("deliver", "x")
    evil = f"os.mkdir:{marker}"
    return {
        "pickle": {"data": zlib.compress(pickle.dumps(Exploit(marker)))},
        "plain-pickle": {"data": pickle.dumps(Exploit(marker))},
        "pickled-call": {
            "data": zlib.compress(pickle.dumps(("os.mkdir", None, (str(marker),), {})))
        },
        "by-name": {"data": document("os.mkdir", str(marker))},
        "by-module": {"data": document("tusd_workers.expiry.sweep_all")},
        "instance": {"data": zlib.compress(b'["deliver", {"a": 1}, ["x"], {}]')},
        "keywords": {"data": document("deliver", "x", keywords={"a": 1})},
        "outside": {"data": document("deliver", "../../x")},
        "arguments": {"data": document("sweep-all", "x")},
        "no-text": {"data": document("deliver", 5)},
        "nested": {"data": zlib.compress(b"[" * 10_000)},
        "large": {"data": zlib.compress(b" " * 50_000_000)},
        "empty": {"data": b""},
        "callback": {"data": good, "failure_callback_name": "os.mkdir"},
        "success": {"data": good, "success_callback_name": evil},
        "stopped": {"data": good, "stopped_callback_name": evil},
        "meta": {"data": good, "meta": pickle.dumps(Exploit(marker))},
        "webhook": {"data": good, "webhooks": '[{"url": "http://127.0.0.1:1/"}]'},
        "dependency": {"data": good, "dependency_ids": '["pickle"]'},
        "group": {"data": good, "group_id": "g"},
        "repeat": {"data": good, "repeats_left": "5", "repeat_intervals": "[1]"},
        "result": {"data": good, "result": pickle.dumps(Exploit(marker))},
        "limit": {"data": good, "rate_limit_key": "k", "rate_limit_concurrency": "0"},
        "dates": {"data": good, "enqueued_at": "yesterday"},
        "elsewhere": {"data": good, "origin": "other"},
    }


def put(redis: Redis, jobs: dict[str, dict[str, bytes | str]]) -> None:
    for job_id, fields in jobs.items():
        for name, value in ({"origin": "delivery"} | fields).items():
            redis.hset(f"{BASE}job:{job_id}", name, value)


def worker_lines(house: House, worker: Job) -> str:
    code, said = worker.end()
    house.jobs.remove(worker)
    assert code == 0, said
    return said


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "carried-out"
    yield path
    assert not path.exists()


def test_what_is_none_of_our_jobs_is_refused_and_put_aside(house: House, marker: Path) -> None:
    jobs = hostile(marker)
    redis = house.redis.client
    put(redis, jobs)
    redis.set(f"{BASE}job:a-text", "x")
    redis.rpush(QUEUE, *jobs, "a-text", b"\xff\xfe", "../x", "no-such-job")
    server = house.serve()
    worker = house.work(server, scheduler=False)
    path = finish(Tus(server))
    wait_for_type(house.endpoint, path, "post-finish")
    wait_until(lambda: redis.llen(QUEUE) == 0, "an empty queue", SLOW)
    assert worker.process.poll() is None
    worker.wait_for_lines("job refused", len(jobs) + 3)
    said = worker_lines(house, worker)
    assert said.count("job refused") == len(jobs) + 3, said
    assert "Traceback" not in said
    for job_id in jobs:
        assert redis.exists(f"{BASE}job:{job_id}") == 0
        assert redis.hexists(f"{BASE}refused:job:{job_id}", "data")
        assert 0 < redis.ttl(f"{BASE}refused:job:{job_id}") <= 7 * 86_400
    assert redis.llen(f"{BASE}refused") == len(jobs) + 3


def test_what_stands_where_a_queue_should_be_is_put_aside(house: House) -> None:
    redis = house.redis.client
    for key in ("queue:delivery", "workers", "failed:delivery", "wip:delivery", "failed:expiry"):
        redis.set(f"{BASE}{key}", "not this")
    redis.set(f"{BASE}scheduler:scheduled_jobs", "not this")
    server = house.serve()
    worker = house.work(server)
    path = finish(Tus(server))
    # The server's own attempt failed: what waits is found by the sweep.
    wait_for_type(house.endpoint, path, "post-finish")
    wait_until_empty(house, server)
    assert worker.process.poll() is None
    assert redis.get(f"{BASE}refused:queue:delivery") == b"not this"


def test_nobody_directs_a_worker_through_redis(house: House) -> None:
    """Commands of rq's over channels, and its mark that suspends all workers."""
    redis = house.redis.client
    for base in ("rq:", BASE):
        redis.set(f"{base}suspended", 1)
    server = house.serve()
    worker = house.work(server, scheduler=False)
    path = finish(Tus(server))
    wait_for_type(house.endpoint, path, "post-finish")
    [key] = cast("set[bytes]", redis.smembers(f"{BASE}workers"))
    name = key.decode().removeprefix(f"{BASE}worker:")
    assert redis.execute_command("PUBSUB", "NUMPAT") == 0
    channels = redis.execute_command("PUBSUB", "CHANNELS", "*rq:*")
    assert channels == []
    for base in ("rq:", BASE):
        for command in ("shutdown", "kill-horse", "stop-job", "stop-execution"):
            redis.publish(f"{base}pubsub:{name}", json.dumps({"command": command}))
    path = finish(Tus(server))
    wait_for_type(house.endpoint, path, "post-finish")
    assert worker.process.poll() is None


# The scheduler and others' jobs


def fill_with_others(redis: Redis, marker: Path) -> dict[bytes, float]:
    """Jobs of another application's rq-scheduler; what stands in its set, by time."""
    theirs = RQScheduler(connection=redis, queue_name="theirs")
    past = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=2)
    theirs.enqueue_at(past, "their.module.function", Exploit(marker))
    theirs.schedule(past, "their.other", interval=5, repeat=3)
    cron = theirs.cron("0 0 * * *", "their.nightly", use_local_timezone=True)
    redis.zadd(OLD_SCHEDULED, {cron.id: past.timestamp(), "no-job": 5.0, b"\xff\xfe": 6.0})
    redis.hset("rq:job:broken", mapping={"data": "x", "created_at": "never", "timeout": "y"})
    redis.set("rq:job:text", "x")
    redis.zadd(OLD_SCHEDULED, {"broken": 7.0, "text": 8.0})
    return scheduled_by_others(redis)


def scheduled_by_others(redis: Redis) -> dict[bytes, float]:
    found = redis.zrange(OLD_SCHEDULED, 0, -1, withscores=True)
    return dict(cast("list[tuple[bytes, float]]", found))


def test_others_jobs_are_left_alone_and_end_no_scheduler(house: House, marker: Path) -> None:
    redis = house.redis.client
    before = fill_with_others(redis, marker)
    house.endpoint.script("post-create", Reply(500), Reply())
    server = house.serve()
    house.work(server)
    path = finish(Tus(server))
    # Put off after its failure, and brought back by the scheduler.
    wait_for_type(house.endpoint, path, "post-finish")
    assert scheduled_by_others(redis) == before
    assert redis.exists("rq:queue:theirs") == 0
    [scheduler] = [job for job in house.jobs if job.name == "scheduler"]
    assert scheduler.process.poll() is None
    code, said = scheduler.end()
    assert (code, "ERROR" in said, "Traceback" in said) == (0, False, False), said


def test_what_is_scheduled_among_ours_and_is_none_is_put_aside(house: House, marker: Path) -> None:
    redis = house.redis.client
    jobs = hostile(marker)
    put(redis, jobs)
    scheduled = f"{BASE}scheduler:scheduled_jobs"
    for job_id in [*map(str.encode, jobs), b"\xff", b"gone"]:
        redis.zadd(scheduled, {job_id: 1.0})
    server = house.serve()
    house.work(server)
    wait_until(lambda: redis.zcount(scheduled, 0, 2) == 0, "an empty schedule", SLOW)
    finished = finish(Tus(server))
    wait_for_type(house.endpoint, finished, "post-finish")
    [scheduler] = [job for job in house.jobs if job.name == "scheduler"]
    scheduler.wait_for_lines("job refused", len(jobs) + 1)
    code, said = scheduler.end()
    assert (code, said.count("job refused")) == (0, len(jobs) + 1), said


# Jobs of an older version


def older_id(path: str, end: str) -> str:
    return f"tusd-deliver-{_digest(id_of(path))}-{end}"


def queue_as_older(redis: Redis, path: str) -> None:
    """Queue a job as servers of an older version did."""
    Queue("tusd-delivery", connection=redis).enqueue_call(
        "tusd_workers.delivery.deliver", (id_of(path),), job_id=older_id(path, "0a1b2c3d4e5f")
    )


def lose_todays(house: House, server: ServerProcess) -> None:
    """The server's own job is gone, as if it were of an older version."""
    wait_until(lambda: house.redis.client.llen(QUEUE) > 0, "the job", SLOW)
    server.terminate()
    house.redis.client.flushall()


def test_jobs_of_an_older_version_are_replaced_without_being_unpickled(
    house: House, marker: Path
) -> None:
    server = house.serve()
    path = finish(Tus(server))
    lose_todays(house, server)
    redis = house.redis.client
    worker = house.work(server, scheduler=False)
    wait_for_type(house.endpoint, path, "post-finish")
    wait_until_empty(house, server)
    # While it runs, an older server goes on: one job of its own, and one that somebody forged.
    Queue("tusd-delivery", connection=redis).enqueue_call("os.mkdir", (str(marker),), job_id="evil")
    queue_as_older(redis, path)
    wait_until(lambda: redis.llen(OLD_QUEUE) == 0, "an empty queue", SLOW)
    wait_until(
        lambda: redis.exists(f"rq:job:{older_id(path, '0a1b2c3d4e5f')}") == 0, "its job", SLOW
    )
    worker.wait_for_lines("older job replaced")
    worker.wait_for_lines("job refused")
    said = worker_lines(house, worker)
    assert said.count("older job replaced") == 1, said
    assert said.count("job refused") == 1, said


def test_an_event_that_only_an_older_job_stands_for_is_delivered(house: House) -> None:
    """The worker runs when an older server queues the job, and the sweep is far away."""
    server = house.serve()
    worker = house.work(server, scheduler=False)
    wait_until(lambda: house.redis.client.scard(f"{BASE}workers") == 1, "the worker", SLOW)
    # Today's server cannot queue: what it would say is lost.
    house.redis.command("ACL", "SETUSER", "default", "-sadd", "-rpush")
    path = finish(Tus(server))
    server.kill9()
    assert house.outbox(server) != []
    house.redis.command("ACL", "SETUSER", "default", "+@all")
    assert house.endpoint.calls == []
    queue_as_older(house.redis.client, path)
    wait_for_type(house.endpoint, path, "post-finish")
    wait_until_empty(house, server)
    assert worker.process.poll() is None


def test_what_an_older_version_put_off_is_removed_when_nobody_sees_to_it(house: House) -> None:
    redis = house.redis.client
    theirs = RQScheduler(connection=redis, queue_name="tusd-delivery")
    ours, recent = older_id("/files/a", "1764300000"), older_id("/files/b", "1764300001")
    past = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=2)
    for job_id in (ours, recent, "theirs"):
        theirs.enqueue_at(past, "tusd_workers.delivery.deliver", "a", job_id=job_id)
    redis.zadd(OLD_SCHEDULED, {recent: datetime.now(UTC).timestamp() + 3600})
    server = house.serve()
    house.work(server)
    # Its time goes first, then the job.
    wait_until(lambda: not redis.exists(f"rq:job:{ours}"), "its removal", SLOW)
    assert redis.zscore(OLD_SCHEDULED, ours) is None
    assert set(redis.zrange(OLD_SCHEDULED, 0, -1)) == {
        recent.encode(),
        b"theirs",
    }
