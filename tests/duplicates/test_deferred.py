"""Uploads whose length is not known yet, where the operator says which metadata identify a file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.conftest import MakeServer
from tests.duplicates.test_hook import MakeHouse, make_house, refused
from tests.duplicates.test_server import assert_duplicate, problem
from tests.duplicates.uploads import House, backdate, remembered
from tests.duplicates.uploads import problem as problem_of
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, metadata, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Response
from tests.workers.test_sweep_command import abandon
from tusd_py.redis.duplicate_index import DuplicateIndex, Holder

__all__ = ["make_house"]

DECLARED = {"Upload-Length": "10"}
CONTENT = b"x" * 10

_numbers = itertools.count()


@pytest.fixture(scope="module", params=["--duplicate-keys", "--duplicate-fingerprint-key"])
def tus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tus]:
    """A client of a server that compares the key `study` alone. Unfinished uploads are in the way for a minute."""
    env = {
        "TUSD_DUPLICATES": "on",
        "TUSD_DUPLICATES_PENDING_GRACE": "60s",
    }
    directory = tmp_path_factory.mktemp("deferred") / "uploads"
    with ServerProcess(directory, request.param, "study", env=env) as server:
        yield Tus(server)


@pytest.fixture
def study() -> dict[str, str]:
    """Metadata of a study of the test's own; the file's name does not count."""
    number = next(_numbers)
    return {"Upload-Metadata": metadata(study=str(number), filename=f"{number}.dcm")}


@contextmanager
def embedded(tus: Tus) -> Iterator[RedisServer]:
    """The Redis that the server has started for itself."""
    redis = RedisServer(tus.server.upload_dir / ".tusd-py" / "valkey")
    # The path in the directory itself may be too long for a socket.
    redis.socket = re.findall(r"embedded redis .*socket=(\S+)", tus.server.log())[-1]
    try:
        yield redis
    finally:
        redis.stop()


def create(tus: Tus, length: int | None, headers: dict[str, str]) -> Response:
    deferred = {"Upload-Defer-Length": "1"} if length is None else {}
    return tus.create(length, headers=headers | deferred)


@pytest.mark.parametrize(("first", "second"), [(None, None), (None, 10), (10, None)])
def test_a_duplicate_is_refused(
    tus: Tus, study: dict[str, str], first: int | None, second: int | None
) -> None:
    path = tus.new(first, headers=study)
    response = create(tus, second, study)
    assert_duplicate(response, "pending")
    told = str(problem(response)["detail"])
    assert told == "an upload with the same study is being sent; retry later"
    given = DECLARED if first is None else {}
    assert tus.patch(path, 0, CONTENT, given).status == 204
    # What arrived is known before the response; that it is complete, is told to Redis behind it.
    wait_until(lambda: problem(create(tus, second, study))["state"] == "complete", "the record")


def test_a_declared_length_tells_it_from_others(tus: Tus, study: dict[str, str]) -> None:
    path = tus.new(None, headers=study)
    assert_duplicate(create(tus, 11, study), "pending")
    assert tus.patch(path, 0, b"x", DECLARED).status == 204
    assert_duplicate(create(tus, 10, study), "pending")
    other = tus.new(11, headers=study)
    assert_duplicate(create(tus, None, study), "pending")
    assert tus.patch(path, 1, CONTENT[1:]).status == 204
    wait_until(lambda: problem(create(tus, 10, study))["state"] == "complete", "the record")
    assert_duplicate(create(tus, 11, study), "pending")
    assert tus.delete(other).status == 204
    assert tus.delete(path).status == 204
    tus.new(None, headers=study)


@pytest.mark.parametrize("first", [None, 10])
def test_what_was_removed_is_released(tus: Tus, study: dict[str, str], first: int | None) -> None:
    for second in (None, 10, None):
        path = tus.new(first, headers=study)
        assert tus.delete(path).status == 204
        path = tus.new(second, headers=study)
        assert tus.delete(path).status == 204


def test_the_sweep_releases(make_server: MakeServer, study: dict[str, str]) -> None:
    flags = ("--expire-after", "500ms", "--sweep-interval", "100ms", "--duplicate-keys", "study")
    tus = Tus(make_server(*flags))
    path = tus.new(None, headers=study)
    wait_until(lambda: tus.head(path).status == 410, "its expiry")
    wait_until(lambda: create(tus, 10, study).status == 201, "its release")
    wait_until(lambda: create(tus, None, study).status == 201, "the release of the second")


def test_it_may_be_forced(tus: Tus, study: dict[str, str]) -> None:
    force = study | {"Upload-Force": "true"}
    paths = [tus.new(length, headers=force) for length in (10, None, 10, None)]
    assert_duplicate(create(tus, None, study), "pending")
    assert_duplicate(create(tus, 11, study), "pending")
    for path in paths:
        assert tus.delete(path).status == 204
    tus.new(None, headers=study)


def test_of_many_at_once_one_is_created(tus: Tus, study: dict[str, str]) -> None:
    """With and without a length, of two lengths."""
    lengths: list[dict[str, str]] = [
        {"Upload-Defer-Length": "1"},
        {"Upload-Length": "10"},
        {"Upload-Defer-Length": "1"},
        {"Upload-Length": "11"},
    ]
    with ExitStack() as stack:
        connections = [stack.enter_context(tus.connect()) for _ in range(80)]
        for connection, length in zip(connections, itertools.cycle(lengths), strict=False):
            head = {"Tus-Resumable": "1.0.0", "Content-Length": "0", **study, **length}
            connection.send_head("POST", tus.server.base_path, head)
        answers = [connection.read_response("POST") for connection in connections]
    created = [path_of(answer["Location"]) for answer in answers if answer.status == 201]
    assert sorted({answer.status for answer in answers}) == [201, 409]
    known = [tus.head(path).get("Upload-Length") for path in created]
    # Two of different lengths may be together, nothing else.
    assert known in ([None], ["10"], ["11"], ["10", "11"], ["11", "10"])


def test_one_whose_client_is_gone_gives_way(tus: Tus, study: dict[str, str]) -> None:
    path = tus.new(None, headers=study)
    abandon(tus.server, path, days=1)
    with embedded(tus) as redis:
        backdate(redis, 86_400)
    tus.new(10, headers=study)


def test_records_of_earlier_versions_count(tus: Tus, study: dict[str, str]) -> None:
    """They have the fingerprint with the length alone."""
    path = tus.finished(CONTENT, headers=study)
    wait_until(lambda: problem(create(tus, None, study))["state"] == "complete", "the record")
    any_length = problem(create(tus, None, study))["fingerprint"]
    assert any_length != problem(create(tus, 10, study))["fingerprint"]
    with embedded(tus) as redis:
        assert redis.command("DEL", f"tusd:duplicate:{{{any_length}}}") == 1
    assert_duplicate(create(tus, 10, study), "complete")
    assert tus.delete(path).status == 204
    tus.new(10, headers=study)


# The hook by itself


@pytest.fixture
async def house(make_house: MakeHouse) -> House:
    return await make_house(duplicate_keys=("study",))


async def test_one_that_lacks_its_length_is_offered_to_those_who_lack_it_too(
    house: House, redis: RedisServer
) -> None:
    """Others would send all bytes and declare no length: the upload would never finish."""
    first = await house.create(length=None, owner="me")
    assert "Location" in (await refused(house.create(length=None, owner="me"))).headers
    refusal = await refused(house.create(owner="me"))
    assert "Location" not in refusal.headers
    assert refusal.headers["Retry-After"]
    house.idle[first] = 3600
    backdate(redis, 3600)
    await house.create(owner="me")


async def test_what_finished_unseen_counts_by_its_length(house: House, redis: RedisServer) -> None:
    first = await house.create(length=None)
    house.there[first] = (100, True)
    house.lengths[first] = 100
    other = await house.create(length=200)
    told = problem_of(await refused(house.create(length=100)))
    assert told["state"] == "complete"
    both = [(first, "complete"), (first, "complete"), (other, "pending"), (other, "pending")]
    assert sorted(remembered(redis)) == sorted(both)


async def test_one_that_finishes_while_another_is_checked_is_seen(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await house.create(length=None)
    reserve = DuplicateIndex.reserve

    async def reserve_then_finish(index: DuplicateIndex, *args: Any, **more: Any) -> Holder | None:
        monkeypatch.undo()
        holder = await reserve(index, *args, **more)
        await house.finish(first)
        return holder

    monkeypatch.setattr(DuplicateIndex, "reserve", reserve_then_finish)
    assert problem_of(await refused(house.create()))["state"] == "complete"


async def test_a_refused_one_gives_back_what_it_has(house: House, redis: RedisServer) -> None:
    first = await house.create(length=None)
    await refused(house.create())
    assert remembered(redis) == [(first, "pending")]
