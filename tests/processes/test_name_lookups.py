"""Processes stop in time while DNS does not answer for the host of their Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.containers.by_hand import has_mounts_of_its_own
from tests.support.jobs import Job
from tests.support.names import NameServer, name_server
from tests.support.redis import RedisServer
from tests.support.server import PROGRAM
from tests.support.tus import Tus
from tests.support.waiting import wait_until

SECONDS = 20.0
"""Less than a lookup lasts."""

pytestmark = pytest.mark.skipif(
    not has_mounts_of_its_own(), reason="needs root and mounts: sudo make test"
)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", tcp=True) as server:
        yield server


@pytest.fixture
def names(tmp_path: Path) -> Iterator[NameServer]:
    with name_server(tmp_path) as server:
        yield server


def url(redis: RedisServer) -> str:
    assert "127.0.0.1" in redis.url
    return redis.url.replace("127.0.0.1", "redis.example")


def lose(redis: RedisServer, names: NameServer) -> None:
    """Ends Redis, and waits for a lookup of its name that will not be answered."""
    names.silent = True
    redis.kill9()
    assert names.asked.wait(60)


def test_a_server_stops_as_always(
    make_server: MakeServer, redis: RedisServer, names: NameServer
) -> None:
    env = {
        "TUSD_REDIS_URL": url(redis),
        "TUSD_REDIS_TIMEOUT": "1s",
        "TUSD_SHUTDOWN_TIMEOUT": "15s",
    }
    server = make_server(env=env, prefix=names.before())
    tus = Tus(server)
    path = tus.new(10)
    tus.patch(path, 0, b"hello")
    lose(redis, names)
    assert server.terminate(SECONDS) == 0
    assert "Traceback" not in server.log()
    assert "asyncio" not in server.log()


@pytest.mark.parametrize(
    "command", [("worker",), ("worker", "--queue", "expiry"), ("scheduler",)], ids=" ".join
)
def test_workers_and_the_scheduler_stop_in_time(
    redis: RedisServer, names: NameServer, tmp_path: Path, command: tuple[str, ...]
) -> None:
    job = Job(
        *command,
        "--upload-dir",
        str(tmp_path / "uploads"),
        env={"TUSD_REDIS_URL": url(redis), "TUSD_REDIS_TIMEOUT": "1s"},
        program=names.before(*PROGRAM),
    )
    try:
        job.wait_for_lines("working" if command[0] == "worker" else "scheduling")
        lose(redis, names)
        job.process.terminate()
        assert job.process.wait(SECONDS) == 0
        wait_until(lambda: f"{command[0]} stopped" in "".join(job.lines), "its last line")
        assert "Traceback" not in "".join(job.lines)
    finally:
        job.close()
