"""Duplicates on a real server with its embedded Redis."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.duplicates.uploads import backdate
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, checksum, id_of, metadata, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Response
from tests.workers.test_sweep_command import abandon

STUDY = {"Upload-Metadata": metadata(study="17", filename="a.dcm")}
OTHER = {"Upload-Metadata": metadata(study="18", filename="a.dcm")}


@pytest.fixture
def tus(make_server: MakeServer) -> Tus:
    """A client of a server of the test's own, with default settings."""
    return Tus(make_server())


Look = Callable[[ServerProcess], RedisServer]


@pytest.fixture
def embedded() -> Iterator[Look]:
    """`embedded(server)`: a look into the Redis that a server has started for itself."""
    looks: dict[str, RedisServer] = {}

    def look(server: ServerProcess) -> RedisServer:
        # The path in the directory itself may be too long for a socket.
        path = re.findall(r"embedded redis .*socket=(\S+)", server.log())[-1]
        if path not in looks:
            looks[path] = RedisServer(server.upload_dir / ".tusd-py" / "valkey")
            looks[path].socket = path
        return looks[path]

    yield look
    for each in looks.values():
        each.stop()


def problem(response: Response) -> dict[str, object]:
    assert response["Content-Type"] == "application/problem+json"
    value = json.loads(response.body)
    assert isinstance(value, dict)
    return value


def assert_duplicate(response: Response, state: str) -> None:
    assert response.status == 409, response
    assert response["Tus-Resumable"] == "1.0.0"
    told = problem(response)
    assert (told["code"], told["state"]) == ("ERR_DUPLICATE_UPLOAD", state)


def metric(tus: Tus, outcome: str) -> float:
    page = tus.get("/metrics").body.decode()
    found = re.search(rf'^tusd_duplicates_total{{outcome="{outcome}"}} (\S+)$', page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_duplicate_is_refused_and_leaves_nothing_behind(tus: Tus) -> None:
    path = tus.new(10, headers=STUDY)
    assert_duplicate(tus.create(10, headers=STUDY), "pending")
    assert tus.patch(path, 0, b"x" * 10).status == 204
    assert_duplicate(tus.create(10, headers=STUDY), "complete")
    assert_duplicate(tus.create(10, body=b"y" * 10, headers=STUDY), "complete")
    assert tus.data_files() == [id_of(path)]
    assert tus.stored(path) == b"x" * 10
    assert [metric(tus, outcome) for outcome in ("new", "pending", "complete")] == [1, 1, 2]


def test_an_upload_whose_client_is_gone_can_be_uploaded_anew(tus: Tus, embedded: Look) -> None:
    """By a client that was killed and knows no URL, where nobody is authenticated."""
    first = tus.new(10, headers=STUDY)
    assert tus.patch(first, 0, b"x" * 4).status == 204
    refused = tus.create(10, headers=STUDY)
    assert_duplicate(refused, "pending")
    assert 1 <= int(refused["Retry-After"]) <= 60
    abandon(tus.server, first, days=1)
    backdate(embedded(tus.server), 86_400)
    second = tus.new(10, headers=STUDY)
    assert tus.patch(second, 0, b"y" * 10).status == 204
    assert_duplicate(tus.create(10, headers=STUDY), "complete")
    # The first one is left to expire.
    assert tus.offset(first) == 4


def test_a_page_of_another_site_can_read_the_refusal_and_force(tus: Tus) -> None:
    tus.new(10, headers=STUDY)
    origin = {"Origin": "https://page.example"}
    response = tus.create(10, headers=STUDY | origin)
    assert response["Access-Control-Allow-Origin"] == "https://page.example"
    exposed = response["Access-Control-Expose-Headers"].lower().split(", ")
    assert {"location", "upload-offset", "retry-after"} <= set(exposed)
    asked = {"Access-Control-Request-Method": "POST"}
    allowed = tus.options(headers=origin | asked)["Access-Control-Allow-Headers"]
    assert "upload-force" in allowed.lower().split(", ")


def test_what_differs_is_no_duplicate(tus: Tus) -> None:
    for headers in (STUDY, OTHER, {"Upload-Metadata": metadata(Study="17", filename="a.dcm")}):
        tus.new(10, headers=headers)
    tus.new(11, headers=STUDY)
    for _ in range(2):
        tus.new(10)


def test_metadata_that_is_not_utf8_and_metadata_of_100_kb(make_server: MakeServer) -> None:
    tus = Tus(make_server("--max-header-size", "1MiB"))
    for value in (b"\xff\xfe\0", b"x" * 100_000, b"x" * 99_999 + b"\xff"):
        headers = {"Upload-Metadata": metadata(study=value)}
        path = tus.new(10, headers=headers)
        assert_duplicate(tus.create(10, headers=headers), "pending")
        assert tus.patch(path, 0, b"x" * 10).status == 204
        assert_duplicate(tus.create(10, headers=headers), "complete")


@pytest.mark.parametrize(
    "force",
    [
        {"Upload-Force": "true"},
        {"Upload-Metadata": metadata(study="17", filename="a.dcm", force_upload="true")},
    ],
    ids=["header", "metadata"],
)
def test_force(tus: Tus, force: dict[str, str]) -> None:
    first = tus.finished(b"x" * 10, headers=STUDY)
    second = tus.finished(b"y" * 10, headers=STUDY | force)
    assert tus.stored(first) == b"x" * 10
    assert tus.stored(second) == b"y" * 10
    assert_duplicate(tus.create(10, headers=STUDY), "complete")


@pytest.mark.parametrize(
    "force",
    [{"Upload-Force": "maybe"}, {"Upload-Metadata": metadata(force_upload="TRUE")}],
    ids=["header", "metadata"],
)
def test_a_force_that_is_neither_true_nor_false(tus: Tus, force: dict[str, str]) -> None:
    response = tus.create(10, body=b"x" * 10, headers=force)
    assert response.status == 400
    assert problem(response)["code"] == "ERR_INVALID_FORCE"
    assert tus.data_files() == []


def test_what_was_removed_may_come_again_at_once(tus: Tus) -> None:
    for number in range(30):
        path = tus.finished(b"x" * 10, headers=STUDY) if number % 2 else tus.new(10, headers=STUDY)
        assert tus.delete(path).status == 204


def test_what_was_finished_is_known_at_once(tus: Tus) -> None:
    for number in range(30):
        headers = {"Upload-Metadata": metadata(study=str(number))}
        tus.finished(b"x" * 10, headers=headers)
        assert_duplicate(tus.create(10, headers=headers), "complete")


def test_zero_length(tus: Tus) -> None:
    tus.new(0, headers=STUDY)
    assert_duplicate(tus.create(0, headers=STUDY), "complete")


def test_deferred_length(tus: Tus) -> None:
    path = tus.new(None, headers=STUDY)
    other = tus.new(None, headers=STUDY)
    assert tus.patch(path, 0, b"x" * 10, {"Upload-Length": "10"}).status == 204
    wait_until(lambda: tus.create(10, headers=STUDY).status == 409, "the record")
    assert tus.patch(other, 0, b"x" * 10, {"Upload-Length": "10"}).status == 204


def test_parts_are_not_checked_and_their_final_is(tus: Tus) -> None:
    partial = STUDY | {"Upload-Concat": "partial"}
    parts = [tus.finished(b"x" * 5, headers=partial) for _ in range(2)]
    final = STUDY | {"Upload-Concat": f"final;{' '.join(parts)}"}
    path = path_of(tus.create(headers=final)["Location"])
    # Its creation can be repeated; of other parts it is a duplicate.
    assert path_of(tus.create(headers=final)["Location"]) == path
    other = final | {"Upload-Concat": f"final;{' '.join(reversed(parts))}"}
    assert_duplicate(tus.create(headers=other), "complete")
    assert_duplicate(tus.create(10, headers=STUDY), "complete")
    assert tus.stored(path) == b"x" * 10


def test_an_expired_upload_gives_way(make_server: MakeServer, embedded: Look) -> None:
    tus = Tus(make_server("--expire-after", "1s", "--sweep-interval", "1h"))
    path = tus.new(10, headers=STUDY)
    assert_duplicate(tus.create(10, headers=STUDY), "pending")
    wait_until(lambda: tus.head(path).status == 410, "its expiry")
    # A reservation that is younger may be of a creation under way.
    backdate(embedded(tus.server), 60)
    assert tus.create(10, headers=STUDY).status == 201


def test_the_sweep_releases(make_server: MakeServer) -> None:
    tus = Tus(make_server("--expire-after", "500ms", "--sweep-interval", "100ms"))
    path = tus.new(10, headers=STUDY)
    wait_until(lambda: tus.head(path).status == 410, "its expiry")
    wait_until(lambda: tus.create(10, headers=STUDY).status == 201, "its release")


def test_a_creation_that_failed_gives_back_what_it_reserved(
    make_server: MakeServer, tmp_path: Path, embedded: Look
) -> None:
    hook = tmp_path / "names.py"
    hook.write_text(
        "from tusd_py.events.model import Changes\n"
        "def pre_create(event):\n"
        "    name = event.upload.metadata.get('name')\n"
        "    return Changes(id=name.decode()) if name else None\n"
    )
    tus = Tus(make_server("--hook", str(hook)))
    tus.finished(b"x" * 10, headers={"Upload-Metadata": metadata(study="1", name="taken")})
    # The id is in use.
    headers = {"Upload-Metadata": metadata(study="2", name="taken")}
    response = tus.create(10, headers=headers)
    assert (response.status, response["Content-Type"][:10]) == (409, "text/plain")
    # The bytes are not what they were said to be.
    for _ in range(2):
        broken = STUDY | {"Upload-Checksum": checksum(b"other")}
        assert tus.create(10, body=b"x" * 10, headers=broken).status == 460
    assert tus.create(10, headers=STUDY).status == 201
    remembered = embedded(tus.server)
    wait_until(lambda: len(remembered.client.keys("tusd:duplicate:*")) == 2, "two records")


def test_finished_ones_alone(make_server: MakeServer) -> None:
    tus = Tus(make_server("--duplicates", "finished"))
    paths = [tus.new(10, headers=STUDY) for _ in range(3)]
    assert tus.patch(paths[1], 0, b"x" * 10).status == 204
    assert_duplicate(tus.create(10, headers=STUDY), "complete")
    assert tus.patch(paths[2], 0, b"x" * 10).status == 204


def test_off(make_server: MakeServer) -> None:
    tus = Tus(make_server("--duplicates", "off"))
    for _ in range(2):
        tus.finished(b"x" * 10, headers=STUDY | {"Upload-Force": "maybe"})


def test_keys_that_cannot_count_are_a_mistake(make_server: MakeServer) -> None:
    server = make_server("--duplicate-keys", "study,force_upload", launch=True)
    assert server.wait() == 2
    assert "--duplicate-keys" in server.log()
    assert "force_upload says nothing about what is uploaded" in server.log()


@pytest.mark.parametrize("end", ["terminate", "kill9"])
def test_it_is_remembered_over_a_restart(make_server: MakeServer, end: str, embedded: Look) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.finished(b"x" * 10, headers=STUDY)
    tus.new(10, headers=OTHER)
    wait_until(lambda: '"complete"' in str(_records(embedded(server))), "the record")
    if end == "terminate":
        assert server.terminate() == 0
    else:
        server.kill9()
    server.restart()
    assert_duplicate(tus.create(10, headers=STUDY), "complete")
    assert_duplicate(tus.create(10, headers=OTHER), "pending")
    assert tus.delete(path).status == 204
    tus.new(10, headers=STUDY)


def test_one_script_a_creation_one_a_finish_and_none_a_chunk(
    make_server: MakeServer, embedded: Look
) -> None:
    server = make_server()
    tus = Tus(server)
    tus.finished(b"x", headers=OTHER)
    redis = embedded(server)
    wait_until(lambda: '"complete"' in str(_records(redis)), "the first record")

    def asked(lines: list[str]) -> list[str]:
        # Now and then a server asks whether its Redis takes writes, what workers have delivered, and whether quotas are
        # counted; at most once a second it tells what is due when.
        upkeep = (":probe", "INFO", "PING", "{registry}", "{deliveries}", "{quotas}")
        return [line.split()[0] for line in lines if not any(word in line for word in upkeep)]

    with redis.monitor() as seen:
        path = tus.new(30, headers=STUDY)
    assert asked(seen) == ["EVALSHA"]
    with redis.monitor() as seen:
        for offset in (0, 10):
            assert tus.patch(path, offset, b"x" * 10).status == 204
            assert tus.offset(path) == offset + 10
    assert asked(seen) == []
    with redis.monitor() as seen:
        assert tus.patch(path, 20, b"x" * 10).status == 204
        wait_until(lambda: str(_records(redis)).count('"complete"') == 2, "the second record")
    assert [line for line in asked(seen) if line not in ("KEYS", "GET")] == ["EVALSHA"]


def _records(redis: RedisServer) -> list[object]:
    return [redis.client.get(key) for key in redis.client.keys("tusd:duplicate:*")]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the operator's, which keeps its data."""
    with RedisServer(tmp_path / "redis", persistent=True) as server:
        yield server


def test_a_redis_that_stands_still_and_goes_on(make_server: MakeServer, embedded: Look) -> None:
    server = make_server("--redis-timeout", "4s")
    tus = Tus(server)
    tus.finished(b"x" * 10, headers=STUDY)
    wait_until(lambda: '"complete"' in str(_records(embedded(server))), "the record")
    [pid] = re.findall(r"embedded redis started .*pid=(\d+)", server.log())
    os.kill(int(pid), signal.SIGSTOP)
    try:
        path = tus.new(10, headers=STUDY)
        assert tus.patch(path, 0, b"x" * 10).status == 204
        other = tus.finished(b"y" * 10, headers=OTHER)
        assert metric(tus, "unchecked") == 2
    finally:
        os.kill(int(pid), signal.SIGCONT)
    # What was finished in the meantime is remembered as soon as Redis can be told.
    wait_until(lambda: str(_records(embedded(server))).count('"complete"') == 3, "all records")
    assert_duplicate(tus.create(10, headers=STUDY), "complete")
    assert_duplicate(tus.create(10, headers=OTHER), "complete")
    server.wait_for_line("checked for duplicates again; 2 were created unchecked")
    assert server.log().count("cannot be checked for duplicates") == 1
    assert server.log().count("checked for duplicates again; 2 were created unchecked") == 1
    assert tus.delete(other).status == 204


def test_refusing_while_redis_is_away(make_server: MakeServer, redis: RedisServer) -> None:
    env = {"TUSD_REDIS_URL": redis.url, "TUSD_DUPLICATES_WHEN_UNAVAILABLE": "refuse"}
    server = make_server(env=env)
    tus = Tus(server)
    redis.stop()
    response = tus.create(10, headers=STUDY)
    assert (response.status, response["Retry-After"]) == (503, "5")
    assert problem(response)["code"] == "ERR_DUPLICATES_UNAVAILABLE"
    assert tus.data_files() == []
    redis.start()
    wait_until(lambda: tus.create(10, headers=STUDY).status == 201, "Redis to be seen again")


def test_a_finish_that_redis_was_never_told_of_is_remembered_beyond_the_retention(
    make_server: MakeServer, redis: RedisServer
) -> None:
    server = make_server(env={"TUSD_REDIS_URL": redis.url})
    tus = Tus(server)
    path = tus.new(10, headers=STUDY)
    redis.stop()
    assert tus.patch(path, 0, b"x" * 10).status == 204
    server.kill9()
    redis.start_loaded()
    # Redis may have stopped in the middle of the sweep of its start; the next server would wait for the end of its lease.
    redis.command("DEL", "tusd:{registry}:lock")
    # The next server removes it long after it was created. Set now, while no server changes the record.
    backdate(redis, 60)
    server.flags = (*server.flags, "--retain-finished", "1ms", "--sweep-interval", "200ms")
    server.restart()
    wait_until(lambda: tus.data_files() == [], "its removal")
    wait_until(lambda: b'"complete"' in str(_records(redis)).encode(), "the record")
    assert_duplicate(tus.create(10, headers=STUDY), "complete")
