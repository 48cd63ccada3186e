"""A failed creation does not cause its own retry to be refused as a duplicate."""

from __future__ import annotations

import base64
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.storage.test_file_store import limit_file_size
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata, path_of

STUDY = {"Upload-Metadata": metadata(study="4711")}
WRONG = {"Upload-Checksum": f"sha1 {base64.b64encode(bytes(20)).decode()}"}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


def test_507_of_its_first_bytes(make_server: MakeServer, redis: RedisServer) -> None:
    server = make_server(env={"TUSD_DUPLICATES": "on", "TUSD_REDIS_URL": redis.url})
    tus = Tus(server)
    body = b"x" * 300_000
    limit_file_size(server, 100_000)
    refused = tus.create(len(body), body=body, headers=STUDY)
    assert (refused.status, "Location" in refused) == (507, True)
    limit_file_size(server, resource.RLIM_INFINITY)
    assert tus.create(len(body), body=body, headers=STUDY).status == 201
    # What the client was told of is still there, and a third one is a duplicate.
    assert tus.head(path_of(refused["Location"])).status == 200
    assert tus.create(len(body), body=body, headers=STUDY).status == 409


def test_507_of_the_creation(make_server: MakeServer, redis: RedisServer) -> None:
    server = make_server(env={"TUSD_DUPLICATES": "on", "TUSD_REDIS_URL": redis.url})
    tus = Tus(server)
    limit_file_size(server, 10)
    assert tus.create(5, headers=STUDY).status == 507
    limit_file_size(server, resource.RLIM_INFINITY)
    assert tus.create(5, headers=STUDY).status == 201


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [(WRONG, b"hello", 460), ({}, b"hello world", 413)],
    ids=["checksum", "too long"],
)
def test_what_does_not_count(
    make_server: MakeServer,
    redis: RedisServer,
    headers: dict[str, str],
    body: bytes,
    status: int,
) -> None:
    server = make_server(env={"TUSD_DUPLICATES": "on", "TUSD_REDIS_URL": redis.url})
    tus = Tus(server)
    for _ in range(5):
        assert tus.create(5, body=body, headers={**STUDY, **headers}).status == status
    assert tus.create(5, body=b"hello", headers=STUDY).status == 201
    # Nobody was told of what was taken back, so nobody will ask for it.
    assert list((server.upload_dir / ".tusd-py" / "gone").iterdir()) == []


@pytest.mark.parametrize("refusal", ["Reject(422, 'no')", "RuntimeError('down')"])
def test_a_hook_that_refuses_the_finish(
    make_server: MakeServer, redis: RedisServer, tmp_path: Path, refusal: str
) -> None:
    steering = tmp_path / "steering"
    steering.write_text(f"raise {refusal}")
    hook = tmp_path / "finish.py"
    hook.write_text(
        "from pathlib import Path\n"
        "from tusd_py.events.model import Reject\n"
        f"def pre_finish(event):\n    exec(Path({str(steering)!r}).read_text())\n"
    )
    env = {"TUSD_DUPLICATES": "on", "TUSD_REDIS_URL": redis.url}
    tus = Tus(make_server("--hook", str(hook), env=env))
    assert tus.create(5, body=b"hello", headers=STUDY).status in {422, 500}
    steering.write_text("")
    assert tus.create(5, body=b"hello", headers=STUDY).status == 201


def test_a_body_that_is_cut_keeps_its_fingerprint(
    make_server: MakeServer, redis: RedisServer
) -> None:
    """Nobody was answered: whoever sent it finds what arrived."""
    server = make_server(env={"TUSD_DUPLICATES": "on", "TUSD_REDIS_URL": redis.url})
    tus = Tus(server)
    with tus.connect() as connection:
        head = {**STUDY, "Tus-Resumable": "1.0.0", "Upload-Length": "10", "Content-Length": "10"}
        head["Content-Type"] = "application/offset+octet-stream"
        connection.send_head("POST", tus.collection, head)
        connection.send(b"hello")
    server.wait_for_line("ERR_CONNECTION_RESET")
    assert tus.create(10, headers=STUDY).status == 409


CHOOSING = """
from tusd_py.events.model import Changes
def pre_create(event):
    given = event.upload.metadata
    text = lambda key: given[key].decode() if key in given else None
    return Changes(id=text("id"), storage_path=text("path"))
"""


def directories(server: ServerProcess) -> list[str]:
    root = server.upload_dir
    found = (entry.relative_to(root) for entry in root.rglob("*") if entry.is_dir())
    return sorted(str(each) for each in found if each.parts[0] != ".tusd-py")


def test_removed_uploads_leave_no_directories(make_server: MakeServer, tmp_path: Path) -> None:
    hook = tmp_path / "choosing.py"
    hook.write_text(CHOOSING)
    server = make_server("--hook", str(hook))
    tus = Tus(server)

    def chosen(**given: str) -> dict[str, str]:
        return {"Upload-Metadata": metadata(**given)}

    first = tus.new(5, headers=chosen(id="a/b/c", path="2026/11/x"))
    second = tus.new(5, headers=chosen(path="2026/12/y"))
    assert directories(server) == ["2026", "2026/11", "2026/12", "a", "a/b"]
    # Refusals leave none either.
    taken = chosen(id="q/r/s", path="2026/12/y")
    assert tus.create(5, headers=taken).status == 409
    below = chosen(id="t/u/v", path="2026/12/y/z")
    assert tus.create(5, headers=below).status == 409
    wrong = {**chosen(path="w/x/y"), **WRONG}
    assert tus.create(5, body=b"hello", headers=wrong).status == 460
    assert directories(server) == ["2026", "2026/11", "2026/12", "a", "a/b"]
    assert tus.delete(tus.collection + "a/b/c").status == 204
    assert first == tus.collection + "a/b/c"
    assert directories(server) == ["2026", "2026/12"]
    assert tus.delete(second).status == 204
    assert directories(server) == []


def test_a_final_is_joined_into_a_directory_that_was_taken_away(
    make_server: MakeServer, tmp_path: Path
) -> None:
    hook = tmp_path / "choosing.py"
    hook.write_text(CHOOSING)
    tus = Tus(make_server("--hook", str(hook)))
    part = tus.new(5, headers={"Upload-Concat": "partial"})
    created = tus.create(
        headers={
            "Upload-Concat": f"final;{part}",
            "Upload-Metadata": metadata(path="deep/down/final"),
        }
    )
    final = path_of(created["Location"])
    other = tus.new(1, headers={"Upload-Metadata": metadata(path="deep/down/other")})
    assert tus.delete(other).status == 204
    assert tus.patch(part, 0, b"hello").status == 204
    assert tus.head(final).status == 200
    assert tus.server.upload_dir.joinpath("deep/down/final").read_bytes() == b"hello"
    assert id_of(final)
