"""The delivery queue in Redis and the lease of a delivery: lost jobs, and events that arrive during a delivery."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from redis import Redis
from redis.exceptions import LockError, LockNotOwnedError
from redis.lock import Lock

from tests.delivery.test_delivery import FINISH, REQUEST, Post
from tests.support.redis import RedisServer
from tusd_py.jobs.connection import connect
from tusd_py.jobs.delayed import DelayedJobs
from tusd_py.jobs.delivery_queue import Deliveries
from tusd_py.jobs.queues import EXPIRY, QueueKeys
from tusd_py.jobs.relay import Relay
from tusd_py.jobs.rq_classes import set_aside_unless
from tusd_py.jobs.table import SWEEP_ALL
from tusd_py.locks.base import UNFENCED
from tusd_py.settings.model import Settings
from tusd_py.storage.file.store import FileStore
from tusd_workers.current import Instance
from tusd_workers.delivery_runner import DeliveryRunner

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:rq_scheduler")

KEYS = QueueKeys("tusd:")
QUEUE = "tusd:rq:queue:delivery"
LATER = "tusd:rq:scheduler:scheduled_jobs"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def connection(redis: RedisServer) -> Iterator[Redis]:
    with connect(redis.url) as connection:
        yield connection


@pytest.fixture
def deliveries(connection: Redis) -> Deliveries:
    return Deliveries(connection, prefix="tusd:")


def test_a_queue_that_another_process_set_aside_and_filled_again_stays(
    redis: RedisServer, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.set(QUEUE, "not this")
    type_of = connection.type

    def type_of_before(key: str) -> object:
        found = type_of(key)
        set_aside_unless(redis.client, KEYS, key, "list")
        redis.client.rpush(key, "job")
        return found

    monkeypatch.setattr(connection, "type", type_of_before)
    set_aside_unless(connection, KEYS, QUEUE, "list")
    assert connection.lrange(QUEUE, 0, -1) == [b"job"]
    assert connection.get(KEYS.set_aside(QUEUE)) == b"not this"
    assert connection.llen(KEYS.refused) == 1


def queued(connection: Redis) -> int:
    return connection.llen(QUEUE)


def put_off(connection: Redis) -> list[float]:
    """The times of delayed jobs."""
    found = cast("list[tuple[bytes, float]]", connection.zrange(LATER, 0, -1, withscores=True))
    return [when for _, when in found]


def test_only_what_is_missing_is_added(deliveries: Deliveries, connection: Redis) -> None:
    deliveries.add(["a", "b"])
    deliveries.add_at("c", time.time() + 60)
    assert deliveries.add_missing(["a", "b", "c", "d/e"]) == 1
    assert deliveries.add_missing(["a", "b", "c", "d/e"]) == 0
    assert queued(connection) == 3
    connection.flushall()
    assert deliveries.add_missing(["a", "b", "c"]) == 3


def test_a_job_that_nobody_takes_is_not_kept_for_ever(
    deliveries: Deliveries, connection: Redis
) -> None:
    day = 86_400
    deliveries.add(["a"])
    deliveries.add_at("b", time.time() + 600)
    DelayedJobs(connection, "tusd:").add(
        time.time() + 30 * day, SWEEP_ALL, job_id="sweep-all-1", queue=EXPIRY
    )
    left = sorted(connection.ttl(key) for key in connection.keys("tusd:rq:job:*"))
    assert len(left) == 3
    assert 2 * day - 60 < left[0] <= 2 * day
    assert 2 * day + 540 < left[1] <= 2 * day + 601
    assert 32 * day - 60 < left[2] <= 32 * day + 1


@pytest.mark.parametrize("ahead", [-60.0, 9 * 86_400.0], ids=["late", "by a clock since set back"])
def test_what_no_scheduler_has_taken_care_of_is_missing(
    deliveries: Deliveries, connection: Redis, ahead: float
) -> None:
    deliveries.add_at("a", time.time() + ahead)
    assert deliveries.add_missing(["a"]) == 1
    assert queued(connection) == 1


def test_what_is_put_off_to_one_time_is_put_off_once(
    deliveries: Deliveries, connection: Redis
) -> None:
    when = time.time() + 60.5
    for _ in range(3):
        deliveries.add_at("a", when)
    deliveries.add_at("b", when)
    assert len(put_off(connection)) == 2
    assert all(when <= each <= when + 1 for each in put_off(connection))


def test_instances_that_share_a_redis_do_not_meet(
    deliveries: Deliveries, connection: Redis
) -> None:
    other = Deliveries(connection, prefix="other:")
    deliveries.add(["a"])
    deliveries.add_at("b", time.time() + 60)
    assert other.add_missing(["a", "b"]) == 2
    assert queued(connection) == 1


def test_a_lease_is_one_workers_until_it_ends_or_the_worker_dies(connection: Redis) -> None:
    mine, other = (Lock(connection, "lease", timeout=600, blocking=False) for _ in range(2))
    assert mine.acquire()
    assert not other.acquire()
    assert mine.reacquire()
    with pytest.raises(LockError):
        other.release()
    assert not other.acquire()
    mine.release()
    assert other.acquire()
    with pytest.raises(LockError):
        mine.reacquire()
    other.release()
    dying = Lock(connection, "lease", timeout=0.05, blocking=False)
    assert dying.acquire()
    while not mine.acquire():
        time.sleep(0.01)
    with pytest.raises(LockNotOwnedError):
        dying.reacquire()
    with pytest.raises(LockNotOwnedError):
        dying.release()
    assert mine.owned()


@pytest.fixture
def runner(redis: RedisServer, tmp_path: Path) -> Iterator[DeliveryRunner]:
    store = FileStore(tmp_path / "uploads")
    store.open()
    settings = Settings(upload_dir=tmp_path / "uploads", lock_lease=5.0, redis_timeout=30.0)
    runner = DeliveryRunner(Instance(settings, redis.url))
    runner.open()
    yield runner
    runner.close()


async def test_a_lease_that_is_taken_is_asked_for_again_after_its_time(
    runner: DeliveryRunner, connection: Redis
) -> None:
    connection.set("tusd:turn:{x}", "somebody", px=60_000)
    before = time.time()
    runner.deliver("x")
    after = time.time()
    [when] = put_off(connection)
    assert before + 5 <= when <= after + 6


@pytest.mark.parametrize("recorded", ["before", "meanwhile"])
async def test_what_comes_while_the_lease_was_held_is_not_left(
    runner: DeliveryRunner, connection: Redis, monkeypatch: pytest.MonkeyPatch, recorded: str
) -> None:
    """Whoever brought it was sent away, as the lease was taken."""
    post = Post(FileStore(runner._settings.upload_dir))
    runner._delivery = post.delivery
    upload = await post.upload()
    finished = upload.with_info(finished_at=6.0)
    recording = post.publisher.record(FINISH, finished, REQUEST, UNFENCED)
    if recorded == "before":
        await recording
    rounds: list[list[str]] = []
    release = Lock.release

    def release_late(lease: Lock) -> None:
        """Just before the lease ends, after the outbox was read for the last time."""
        rounds.append([kind for kind, _ in post.hook.types])
        if len(rounds) == 1:
            if recorded == "meanwhile":
                runner._run(recording).result()
            runner._run(post.store.finish(finished.info, sync=False, fence=UNFENCED)).result()
        release(lease)

    monkeypatch.setattr(Lock, "release", release_late)
    runner.deliver("x")
    assert rounds == [["post-create"], ["post-create", "post-finish"]]
    assert put_off(connection) == []
    counts = cast("dict[bytes, bytes]", connection.hgetall("tusd:{deliveries}:counts"))
    assert counts == {b"delivered": b"2"}


async def test_a_relay_passes_on_what_it_is_told_and_what_it_finds(
    redis: RedisServer, deliveries: Deliveries, tmp_path: Path
) -> None:
    post = Post(FileStore(tmp_path / "uploads"))
    post.store.open()
    relay = Relay(Settings(upload_dir=tmp_path / "uploads"), redis.url)
    await post.upload("a")
    await post.upload("b")
    redis.stop()
    relay.enqueue("a")
    await relay.start()
    assert await relay.scan(post.outbox) == 0
    redis.start()
    relay.enqueue("a")
    await relay.stop()
    assert deliveries.add_missing(["a"]) == 0
    again = Relay(Settings(upload_dir=tmp_path / "uploads"), redis.url)
    assert await again.scan(post.outbox) == 1
    await again.stop()
    assert deliveries.add_missing(["a", "b"]) == 0
