"""The schedule of jobs: their times, and its recovery after failures of Redis or schedulers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.redis import RedisServer
from tusd_py.jobs.connection import connect
from tusd_py.jobs.queues import EXPIRY, QueueKeys, job_id
from tusd_py.jobs.rq_classes import job_class
from tusd_py.settings.model import Settings
from tusd_workers.scheduler import Scheduler, next_daily, schedules

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:rq_scheduler")


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("zone", "now", "expected"),
    [
        ("UTC", "2026-11-22T01:59:59", "2026-11-22T02:00:00"),
        ("UTC", "2026-11-22T02:00:00", "2026-11-23T02:00:00"),
        ("Europe/Zurich", "2026-11-22T00:30:00", "2026-11-22T01:00:00"),
        ("America/New_York", "2026-11-22T08:00:00", "2026-11-23T07:00:00"),
        # The clocks go forward from 02:00 to 03:00, and back from 03:00 to 02:00: once each.
        ("Europe/Zurich", "2026-03-28T12:00:00", "2026-03-29T01:00:00"),
        ("Europe/Zurich", "2026-10-24T12:00:00", "2026-10-25T00:00:00"),
        ("Europe/Zurich", "2026-10-25T00:00:00", "2026-10-26T01:00:00"),
    ],
)
def test_two_in_the_morning(zone: str, now: str, expected: str) -> None:
    assert next_daily(utc(now), zone) == utc(expected)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def scheduler(redis: RedisServer, clock: Clock, prefix: str = "tusd:") -> Scheduler:
    settings = Settings(time_zone="UTC", redis_prefix=prefix)
    return Scheduler(connect(redis.url), schedules(settings), prefix=prefix, clock=clock)


def queued(redis: RedisServer, prefix: str = "tusd:") -> list[str]:
    with connect(redis.url) as connection:
        return [each.decode() for each in connection.lrange(QueueKeys(prefix).queue(EXPIRY), 0, -1)]


def test_each_time_comes_once_however_many_schedulers_look(redis: RedisServer) -> None:
    # Times that have passed by the real clock, which is rq-scheduler's.
    clock = Clock(utc("2026-11-01T01:55:00"))
    both = [scheduler(redis, clock), scheduler(redis, clock)]
    for each in both * 3:
        each.poll()
    due = job_id("sweep-due", round(utc("2026-11-01T02:00:00")))
    full = job_id("sweep-all", round(utc("2026-11-01T02:00:00")))
    assert sorted(queued(redis)) == sorted([due, full])
    with connect(redis.url) as connection:
        assert job_class("tusd:").fetch(due, connection=connection).failure_ttl == 86_400


def test_the_schedule_comes_back_by_itself(redis: RedisServer) -> None:
    clock = Clock(utc("2036-11-01T01:55:00"))
    each = scheduler(redis, clock)
    each.poll()
    expected = {
        "sweep-due": utc("2036-11-01T02:00:00"),
        "sweep-all": utc("2036-11-01T02:00:00"),
    }
    assert each.upcoming() == expected
    redis.command("FLUSHALL")
    assert each.upcoming() == {}
    each.poll()
    assert each.upcoming() == expected
    assert queued(redis) == []


def test_instances_that_share_a_redis_do_not_meet(redis: RedisServer) -> None:
    clock = Clock(utc("2026-11-01T01:55:00"))
    prefixes = ("tusd:", "a:", "a-", "a")
    for prefix in prefixes:
        scheduler(redis, clock, prefix).poll()
    assert all(len(set(queued(redis, prefix))) == 2 for prefix in prefixes)
