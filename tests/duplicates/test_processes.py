"""Duplicates on several server processes with one directory and Redis: of concurrent creations one succeeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.duplicates.uploads import backdate, remembered
from tests.support.redis import KINDS, Kind, RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Response

AT_ONCE = 200


def create_at_once(servers: Sequence[ServerProcess], headers: dict[str, str]) -> list[Response]:
    """The answers to as many creations of the same thing, all of them sent before the first is read."""
    with ExitStack() as stack:
        connections = [
            stack.enter_context(Tus(servers[number % len(servers)]).connect())
            for number in range(AT_ONCE)
        ]
        head = {
            "Tus-Resumable": "1.0.0",
            "Upload-Length": "10",
            "Content-Length": "0",
            **headers,
        }
        for connection in connections:
            connection.send_head("POST", servers[0].base_path, head)
        return [connection.read_response("POST") for connection in connections]


def assert_one_was_created(answers: Sequence[Response]) -> str:
    """The path of the one upload; all others were told that there is one."""
    statuses = sorted(answer.status for answer in answers)
    assert statuses == [201] + [409] * (AT_ONCE - 1)
    [created] = [answer for answer in answers if answer.status == 201]
    codes = {json.loads(answer.body)["code"] for answer in answers if answer.status == 409}
    assert codes == {"ERR_DUPLICATE_UPLOAD"}
    return path_of(created["Location"])


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_hundred_at_once_one_is_created(
    make_server: MakeServer, tmp_path: Path, kind: Kind
) -> None:
    with RedisServer(tmp_path / "redis", kind=kind) as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        servers = [make_server(env=env, upload_dir=tmp_path / "shared") for _ in range(3)]
        tus = Tus(servers[0])
        for number in range(3):
            headers = {"Upload-Metadata": metadata(study=str(number))}
            path = assert_one_was_created(create_at_once(servers, headers))
            assert len(tus.data_files()) == number + 1
            assert tus.patch(path, 0, b"x" * 10).status == 204
            finished = create_at_once(servers, headers)
            assert {answer.status for answer in finished} == {409}
            assert {json.loads(answer.body)["state"] for answer in finished} == {"complete"}


def test_one_server_of_several_processes(make_server: MakeServer) -> None:
    server = make_server("--workers", "3")
    for number in range(3):
        headers = {"Upload-Metadata": metadata(study=str(number))}
        assert_one_was_created(create_at_once([server], headers))


def test_another_process_sees_what_one_has_done(make_server: MakeServer, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        one, two = (Tus(make_server(env=env, upload_dir=tmp_path / "shared")) for _ in range(2))
        headers = {"Upload-Metadata": metadata(study="17")}
        for _ in range(10):
            path = one.finished(b"x" * 10, headers=headers)
            response = two.create(10, headers=headers)
            assert json.loads(response.body)["state"] == "complete"
            assert two.delete(path).status == 204
            assert one.delete(two.new(10, headers=headers)).status == 204


AHEAD = """
import time
_real = time.time
time.time = lambda: _real() + {seconds}
def post_create(event): ...
"""
"""A hook file of a server whose clock is not that of the others."""


@pytest.mark.parametrize("seconds", [600, -600])
def test_servers_whose_clocks_differ_let_one_in(
    make_server: MakeServer, tmp_path: Path, seconds: int
) -> None:
    hook = tmp_path / "ahead.py"
    hook.write_text(AHEAD.format(seconds=seconds))
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        shared = tmp_path / "shared"
        one = Tus(make_server(env=env, upload_dir=shared))
        two = Tus(make_server("--hook", str(hook), env=env, upload_dir=shared))
        headers = {"Upload-Metadata": metadata(study="17")}
        one.new(10, headers=headers)
        for tus in (two, one, two):
            refused = tus.create(10, headers=headers)
            assert refused.status == 409
            assert 1 <= int(refused["Retry-After"]) <= 60


SLOW = """
import asyncio, os
from tusd_py.events import hooks
from tusd_py.storage.file.store import FileStore
hooks.SLOW_CREATION_SECONDS = 0.0
_create = FileStore.create
async def create(*args, **kwargs):
    while not os.path.exists({go!r}):
        await asyncio.sleep(0.01)
    return await _create(*args, **kwargs)
FileStore.create = create
def post_create(event): ...
"""
"""A hook file of a server whose disk stands still until a file appears."""


def test_a_creation_that_stands_still_for_long_gives_way_to_the_one_that_came_meanwhile(
    make_server: MakeServer, tmp_path: Path
) -> None:
    hook, go = tmp_path / "slow.py", tmp_path / "go"
    hook.write_text(SLOW.format(go=str(go)))
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        shared = tmp_path / "shared"
        slow = Tus(make_server("--hook", str(hook), env=env, upload_dir=shared))
        other = Tus(make_server(env=env, upload_dir=shared))
        headers = {"Upload-Metadata": metadata(study="17")}
        with slow.connect() as connection:
            head = {"Tus-Resumable": "1.0.0", "Upload-Length": "10", "Content-Length": "0"}
            connection.send_head("POST", slow.collection, {**head, **headers})
            wait_until(lambda: len(remembered(redis)) == 1, "its reservation")
            backdate(redis, 20)
            path = other.new(10, headers=headers)
            go.touch()
            assert connection.read_response("POST").status == 409
        assert other.data_files() == [id_of(path)]
        # What nobody has in the meantime, a slow creation keeps.
        assert slow.create(11, headers=headers).status == 201
