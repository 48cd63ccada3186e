"""Sentinels name the primary for servers, workers, the scheduler and commands, also after a failover."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.delivery.test_processes import SLOW, finish, wait_for_type
from tests.hooks.endpoint import Endpoint
from tests.support.jobs import Job
from tests.support.sentinel import Watched
from tests.support.tus import Tus
from tests.support.waiting import wait_until
from tests.workers.commands import command, of


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as running:
        yield running


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with Watched(tmp_path / "watched") as watched:
        yield watched


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    jobs: list[Job] = []
    yield jobs
    for job in jobs:
        job.close()


@pytest.mark.timeout(300)
def test_an_upload_goes_on_through_a_failover_and_its_events_are_delivered(
    make_server: MakeServer, endpoint: Endpoint, watched: Watched, jobs: list[Job]
) -> None:
    env = {
        "TUSD_REDIS_URL": watched.url,
        "TUSD_REDIS_TIMEOUT": "5s",
        "TUSD_DUPLICATES": "on",
        "TUSD_HOOKS_HTTP": endpoint.url,
        "TUSD_HOOKS_ENABLED_EVENTS": "post-create,post-finish",
        "TUSD_LOCK_LEASE": "5s",
    }
    server = make_server("--sweep-interval", "1h", env=env)
    where = (*of(server), "--sweep-interval", "1s")
    jobs += [Job(name, *where, env=env) for name in ("worker", "scheduler")]
    tus = Tus(server)
    wait_for_type(endpoint, finish(tus), "post-finish")
    path = tus.new(15, headers={"Upload-Metadata": "filename YQ=="})
    with tus.begin_patch(path, 0, 15, b"01234") as patch:
        patch.wait_stored()
        watched.first.kill9()
        patch.send(b"56789")
        watched.wait_for_failover()
        patch.send(b"abcde")
        assert patch.response().status == 204
    wait_for_type(endpoint, path, "post-finish")
    # The index is asked again as soon as the server has found the new primary; what it was not told meanwhile, it may lack.
    another = {"Upload-Metadata": "filename Yg=="}
    wait_until(lambda: tus.create(15, headers=another).status == 409, "the index", SLOW)

    def is_well() -> bool:
        done = command("status", "--json", *where, env=env)
        return bool(done.stdout) and json.loads(done.stdout)["problems"] == []

    wait_until(is_well, "the status", SLOW)
    assert all(job.process.poll() is None for job in jobs)
    assert server.data_file(path.rpartition("/")[2]).read_bytes() == b"0123456789abcde"
    assert "secret-of-redis" not in server.log()


@pytest.mark.timeout(300)
def test_events_are_delivered_while_the_old_primary_stands_still(
    make_server: MakeServer, endpoint: Endpoint, watched: Watched, jobs: list[Job]
) -> None:
    """Its kernel still acknowledges what is sent to it, so that clients notice nothing."""
    env = {
        "TUSD_REDIS_URL": watched.url,
        "TUSD_REDIS_TIMEOUT": "1s",
        "TUSD_HOOKS_HTTP": endpoint.url,
        "TUSD_HOOKS_ENABLED_EVENTS": "post-finish",
    }
    server = make_server("--sweep-interval", "1h", env=env)
    jobs.append(Job("worker", *of(server), env=env))
    tus = Tus(server)
    wait_for_type(endpoint, finish(tus), "post-finish")
    watched.first.pause()
    watched.wait_for_failover()
    wait_for_type(endpoint, finish(tus), "post-finish")
    watched.first.resume()
    wait_for_type(endpoint, finish(tus), "post-finish")


def test_no_sentinel_answers(make_server: MakeServer, watched: Watched) -> None:
    """The server says so without the password, and uploads go on as without Redis."""
    url = watched.url
    watched.sentinel.close()
    server = make_server(env={"TUSD_REDIS_URL": url, "TUSD_REDIS_TIMEOUT": "2s"})
    server.wait_for_line("redis away", SLOW)
    tus = Tus(server)
    path = tus.new(5)
    assert tus.patch(path, 0, b"hello").status == 204
    assert "secret-of-redis" not in server.log()
