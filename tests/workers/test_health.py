"""`tusd-py health`: the health checks of containers."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.jobs import Job
from tests.support.redis import RedisServer
from tests.support.waiting import wait_until
from tests.workers.commands import command, of


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def started() -> Iterator[list[Job]]:
    jobs: list[Job] = []
    yield jobs
    for job in jobs:
        job.close()


def test_a_server_is_well_as_long_as_it_answers(make_server: MakeServer) -> None:
    server = make_server()
    # As in a container, where it listens on all addresses.
    where = ("--host", "0.0.0.0", "--port", str(server.port))
    assert command("health", *where).returncode == 0
    server.signal(signal.SIGSTOP)
    done = command("health", "serve", *where)
    assert (done.returncode, ": timed out" in done.stderr) == (1, True)
    server.signal(signal.SIGCONT)
    server.kill9()
    done = command("health", *where)
    said = f"the server does not answer at http://0.0.0.0:{server.port}: "
    assert (done.returncode, said in done.stderr) == (1, True)


def test_a_server_on_a_unix_socket(make_server: MakeServer, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = make_server("--unix-sock", str(path))
    assert command("health", "--unix-sock", str(path)).returncode == 0
    server.terminate()
    assert command("health", "--unix-sock", str(path)).returncode == 1


def test_worker_and_scheduler_are_well_while_they_run_and_while_redis_is_away(
    redis: RedisServer, tmp_path: Path, started: list[Job]
) -> None:
    env = {"TUSD_REDIS_URL": redis.url}
    uploads = ("--upload-dir", str(tmp_path / "uploads"))
    none = command("health", "worker", *uploads, env=env)
    assert none.stderr == f"tusd-py health: no worker of {socket.gethostname()} is known\n"
    assert none.returncode == 1
    none = command("health", "scheduler", *uploads, env=env)
    assert (none.returncode, none.stderr) == (1, "tusd-py health: no scheduler runs\n")
    for name in ("worker", "scheduler"):
        job = Job(name, *uploads, env=env)
        started.append(job)
        wait_until(lambda at=name: is_well(at, env), f"the {name}", timeout=60)  # type: ignore[misc]
    redis.stop()
    for name in ("worker", "scheduler"):
        away = command("health", name, *uploads, env=env)
        assert (away.returncode, "Redis is unavailable" in away.stderr) == (0, True)
    redis.start()
    # What was known is gone with this Redis; the scheduler says so again, and the worker has registered anew.
    for name in ("worker", "scheduler"):
        wait_until(lambda at=name: is_well(at, env), f"the {name}", timeout=60)  # type: ignore[misc]
    assert started[0].end()[0] == 0
    assert not is_well("worker", env)


def is_well(name: str, env: dict[str, str]) -> bool:
    return command("health", name, env=env).returncode == 0


def test_an_instance_that_is_none_is_not_made(tmp_path: Path) -> None:
    done = command("health", "worker", "--upload-dir", str(tmp_path / "none"))
    assert done.returncode == 1
    assert not (tmp_path / "none").exists()


def test_mistakes(make_server: MakeServer) -> None:
    done = command("health", "wroker")
    assert done.returncode == 2
    assert "give serve, worker or scheduler; did you mean worker?" in done.stderr
    server = make_server()
    assert command("health", "worker", *of(server)).returncode == 1
