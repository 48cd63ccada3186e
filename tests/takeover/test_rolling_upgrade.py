"""Servers of version 0.1.0 and of this one on one directory and one Redis, while the former are replaced one by one."""

from __future__ import annotations

import itertools
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.hooks.endpoint import Endpoint
from tests.support.jobs import Job
from tests.support.load import Uploaders
from tests.support.redis import RedisServer
from tests.support.server import PROGRAM, ServerProcess
from tests.support.tus import Tus, id_of, metadata
from tests.support.waiting import wait_until

OLD_PACKAGES = Path(__file__).with_name("0.1.0") / "packages.tar.xz"
OLD_PROGRAM = (sys.executable, "-P", "-m", "tusd_py")
"""Runs in the environment of the tests: its dependencies satisfy both versions."""
HALF = 200_000


@pytest.fixture(scope="module")
def old_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PYTHONPATH of version 0.1.0."""
    place = tmp_path_factory.mktemp("old")
    with tarfile.open(OLD_PACKAGES) as archive:
        archive.extractall(place, filter="data")
    return f"{place}:{place / 'hooks'}:{place / 'workers'}"


class Fleet:
    """Servers and jobs of both versions."""

    def __init__(self, place: Path, old_path: str, redis: RedisServer, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._root = place / "uploads"
        self._env = {
            "TUSD_REDIS_URL": redis.url,
            "TUSD_DUPLICATES": "on",
            "TUSD_HOOKS_HTTP": endpoint.url,
            "TUSD_HOOKS_ENABLED_EVENTS": "post-finish",
            # Far more than a stop takes: a server that needs longer ends with 1.
            "TUSD_SHUTDOWN_TIMEOUT": "30s",
        }
        self._old_env = {**self._env, "PYTHONPATH": old_path}
        self.stack = ExitStack()

    def server(self, *, is_old: bool, port: int = 0) -> ServerProcess:
        program, env = (OLD_PROGRAM, self._old_env) if is_old else (PROGRAM, self._env)
        made = ServerProcess(self._root, env=env, port=port, program=program)
        return self.stack.enter_context(made)

    def jobs(self, *, is_old: bool) -> list[Job]:
        program, env = (OLD_PROGRAM, self._old_env) if is_old else (PROGRAM, self._env)
        made = [
            Job(name, "--upload-dir", str(self._root), env=env, program=program)
            for name in ("worker", "scheduler")
        ]
        for job in made:
            self.stack.callback(job.close)
        return made

    def announced(self) -> set[str]:
        return {call.upload["ID"] for call in self.endpoint.of("post-finish")}


@pytest.fixture
def fleet(tmp_path: Path, old_path: str) -> Iterator[Fleet]:
    with RedisServer(tmp_path / "redis") as redis, Endpoint() as endpoint:
        made = Fleet(tmp_path, old_path, redis, endpoint)
        with made.stack:
            yield made


def test_no_upload_fails_while_servers_are_replaced_one_by_one(fleet: Fleet) -> None:
    jobs = fleet.jobs(is_old=True)
    servers = [fleet.server(is_old=True) for _ in range(2)]
    turns = itertools.cycle([server.address for server in servers])
    with Uploaders(lambda: next(turns)) as load:
        load.wait_for_more(4)
        for job in jobs:
            job.end()
        fleet.jobs(is_old=False)
        load.wait_for_more(4)
        for number, server in enumerate(servers):
            assert server.terminate() == 0
            servers[number] = fleet.server(is_old=False, port=server.port)
            load.wait_for_more(4)
    # Some requests were cut off, or nothing was replaced.
    assert load.resumed
    load.check()
    ids = {id_of(upload.path) for upload in load.finished}
    wait_until(lambda: ids <= fleet.announced(), "every upload to be announced")
    assert not any("Traceback" in server.log() for server in servers)


@pytest.mark.parametrize("begins_at_old", [True, False], ids=["old to new", "new to old"])
def test_an_upload_moves_between_the_versions_while_its_first_server_still_receives(
    fleet: Fleet, begins_at_old: bool
) -> None:
    first = Tus(fleet.server(is_old=begins_at_old))
    second = Tus(fleet.server(is_old=not begins_at_old))
    content = bytes(range(256)) * (2 * HALF // 256 + 1)
    path = first.new(2 * HALF)
    with first.begin_patch(path, 0, 2 * HALF, content[:HALF]) as stale:
        stale.wait_stored()
        assert second.offset(path) == HALF
        assert second.patch(path, HALF, content[HALF : 2 * HALF]).status == 204
        assert stale.response().status >= 400
    assert first.get(path).body == second.get(path).body == content[: 2 * HALF]


def test_both_versions_know_what_the_other_one_has_finished(fleet: Fleet) -> None:
    servers = [Tus(fleet.server(is_old=is_old)) for is_old in (True, False)]
    for first, second in itertools.permutations(servers):
        headers = {"Upload-Metadata": metadata(filename=f"from {first.server.port}")}
        first.finished(b"content", headers)
        assert second.create(7, headers=headers).status == 409
