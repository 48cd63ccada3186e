"""Servers with a Redis and workers, and an endpoint for their hooks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.hooks.endpoint import Endpoint
from tests.support.files import files_below
from tests.support.jobs import Job
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess

ALL = "post-create,post-finish,post-terminate,post-expire"
KILLED = Path(__file__).with_name("killed.py")


class House:
    """A server with a Redis of the operator's, and the workers that are started beside it.

    Workers and the scheduler sweep every second; the server does not after its start, so that what is found is found by them.
    """

    def __init__(self, make_server: MakeServer, endpoint: Endpoint, redis: RedisServer) -> None:
        self.redis = redis
        self._make_server = make_server
        self.endpoint = endpoint
        self.jobs: list[Job] = []
        self.env = {
            "TUSD_REDIS_URL": redis.url,
            # Nothing here is about those that are slow to answer.
            "TUSD_REDIS_TIMEOUT": "10s",
            "TUSD_HOOKS_HTTP_TIMEOUT": "30s",
            "TUSD_HOOKS_HTTP": endpoint.url,
            "TUSD_HOOKS_ENABLED_EVENTS": ALL,
            # What is tried again is tried by workers.
            "TUSD_HOOKS_HTTP_RETRY": "1",
            "TUSD_HOOKS_DELIVERY_BACKOFF": "200ms",
        }

    def lose_patience(self) -> None:
        """From now on those that are killed are not waited for long."""
        self.env["TUSD_LOCK_LEASE"] = "5s"

    def serve(self, *flags: str, dies: str = "") -> ServerProcess:
        """A server; dies: the instant at which it is killed, see `killed.py`."""
        prefix = (sys.executable, str(KILLED), dies) if dies else ()
        return self._make_server("--sweep-interval", "1h", *flags, env=self.env, prefix=prefix)

    def work(self, server: ServerProcess, *flags: str, scheduler: bool = True) -> Job:
        """A worker, and a scheduler with it; the worker."""
        where = ("--upload-dir", str(server.upload_dir), "--sweep-interval", "1s", *flags)
        worker = Job("worker", *where, env=self.env)
        self.jobs.append(worker)
        if scheduler:
            self.jobs.append(Job("scheduler", *where, env=self.env))
        return worker

    def outbox(self, server: ServerProcess, box: str = "outbox") -> list[Path]:
        """The files of events."""
        return files_below(server.upload_dir / ".tusd-py" / box)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as running:
        yield running


@pytest.fixture
def house(make_server: MakeServer, endpoint: Endpoint, tmp_path: Path) -> Iterator[House]:
    with RedisServer(tmp_path / "redis") as redis:
        house = House(make_server, endpoint, redis)
        yield house
        for job in house.jobs:
            job.close()
