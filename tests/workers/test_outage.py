"""An outage of Redis that is longer than every built-in timeout, with and without loss of its data."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.jobs import Job
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus
from tests.support.waiting import wait_until
from tests.workers.commands import command, of
from tests.workers.test_processes import make_due, wait_for_first_sweep
from tests.workers.test_sweep_command import abandon

OUTAGE = {"gone": 8.0, "frozen": 40.0}
"""Seconds. Where connections are refused rq-scheduler would end after 3, and a command is tried for one; where nothing answers
a worker waits for 25 before it knows."""
QUICK = ("--sweep-interval", "1s")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", tcp=True, persistent=True) as server:
        yield server


@pytest.fixture
def started() -> Iterator[list[Job]]:
    jobs: list[Job] = []
    yield jobs
    for job in jobs:
        job.close()


def with_jobs(make_server: MakeServer, redis: RedisServer, started: list[Job]) -> ServerProcess:
    """A server that leaves sweeping to a worker."""
    env = {"TUSD_REDIS_URL": redis.url, "TUSD_REDIS_TIMEOUT": "3s", "TUSD_DUPLICATES": "on"}
    server = make_server("--sweep-interval", "1h", env=env)
    wait_for_first_sweep(redis)
    started += [Job(name, *QUICK, *of(server), env=env) for name in ("worker", "scheduler")]
    return server


def sweeps(server: ServerProcess, redis: RedisServer) -> None:
    """Waits until a worker has swept what was abandoned before."""
    upload_id = abandon(server, Tus(server).new(10))

    def is_swept() -> bool:
        make_due(redis, upload_id)
        return not server.data_file(upload_id).exists()

    wait_until(is_swept, "the sweep", timeout=60)


def all_is_well(server: ServerProcess, redis: RedisServer) -> bool:
    env = {"TUSD_REDIS_URL": redis.url}
    done = command("status", "--json", *QUICK, *of(server), env=env)
    return bool(done.stdout) and json.loads(done.stdout)["problems"] == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["gone", "frozen"])
def test_server_worker_and_scheduler_outlast_an_outage(
    make_server: MakeServer, redis: RedisServer, started: list[Job], way: str
) -> None:
    server = with_jobs(make_server, redis, started)
    tus = Tus(server)
    sweeps(server, redis)
    begun = tus.new(10)
    tus.patch(begun, 0, b"hello")
    end, resume = ways(redis)[way]
    end()
    over = time.monotonic() + OUTAGE[way]
    rounds = 0
    while time.monotonic() < over or rounds < 2:
        # Uploads go on all the time: those that were begun, and new ones.
        rounds += 1
        path = tus.new(5)
        assert tus.patch(path, 0, b"hello").status == 204
        assert tus.offset(begun) == 5
        time.sleep(0.5)
    assert tus.patch(begun, 5, b"world").status == 204
    assert all(job.process.poll() is None for job in started)
    meanwhile = abandon(server, tus.new(10))
    resume()
    sweeps(server, redis)

    def is_swept() -> bool:
        # The registry is told later of what it could not be told, and perhaps twice.
        make_due(redis, meanwhile)
        return not server.data_file(meanwhile).exists()

    wait_until(is_swept, "the sweep", timeout=60)
    wait_until(lambda: all_is_well(server, redis), "the status", timeout=90)
    for job in started:
        code, said = job.end()
        assert (code, "Traceback" in said) == (0, False), said
        # The process says so, once each time, and what a sweep has that was under way; nobody goes on about it.
        own_away = len(re.findall(r"redis away  reason=", said))
        own_back = len(re.findall(r"redis back$", said, re.MULTILINE))
        assert own_away - 1 <= own_back <= 3, said
        # A sweep that gave up does not hear when it is back.
        assert min(own_away, 1) <= said.count("redis back") <= said.count("redis away"), said
        assert said.count("redis away") <= own_away + 4, said
        assert "ERROR" not in said, said
    server.terminate()


def ways(redis: RedisServer) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """By name: functions that begin and end an outage."""

    return {"gone": (redis.kill9, redis.start_loaded), "frozen": (redis.pause, redis.resume)}


@pytest.mark.timeout(300)
def test_after_a_flush_everything_is_known_again(
    make_server: MakeServer, redis: RedisServer, started: list[Job]
) -> None:
    server = with_jobs(make_server, redis, started)
    tus = Tus(server)
    begun, known = tus.new(10), tus.new(10)
    sweeps(server, redis)
    with tus.begin_patch(begun, 0, 10, b"hello") as patch:
        patch.wait_stored()
        redis.command("FLUSHALL")
        patch.send(b"world")
        assert patch.response().status == 204
    # Workers, schedule, sweeps, the registry.
    wait_until(lambda: all_is_well(server, redis), "the status", timeout=90)
    due = "tusd:{registry}:due"
    expected = [known.rpartition("/")[2].encode()]
    # A sweep that met the other one at its finish looks at it again after a minute.
    wait_until(lambda: redis.command("ZRANGE", due, 0, -1) == expected, "the registry", timeout=120)
    sweeps(server, redis)
    assert tus.get(begun).body == b"helloworld"
    server.terminate()
