"""`tusd-py uploads`: listing and removing, with the server running and stopped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.redis import RedisServer
from tests.support.tus import Tus, id_of, metadata
from tests.workers.commands import command, documents, of


def test_states_offsets_and_sizes(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    finished = tus.finished(b"hello", {"Upload-Metadata": metadata(filename="a\nb")})
    begun = tus.new(10)
    tus.patch(begun, 0, b"abc")
    deferred = tus.new(None)
    part = tus.finished(b"part", {"Upload-Concat": "partial"})
    found = {str(each["upload"]): each for each in documents("uploads", "list", *of(server))}
    seen = {name: (each["state"], each["offset"], each["size"]) for name, each in found.items()}
    assert seen == {
        id_of(finished): ("finished", 5, 5),
        id_of(begun): ("uploading", 3, 10),
        id_of(deferred): ("uploading", 0, None),
        id_of(part): ("part", 4, 4),
    }
    assert found[id_of(finished)]["expires"] is None
    assert found[id_of(begun)]["expires"] is not None
    [shown] = documents("uploads", "show", id_of(finished), *of(server))
    assert shown["metadata"] == {"filename": "a\nb"}
    text = command("uploads", "show", id_of(finished), *of(server)).stdout
    assert f"upload      {id_of(finished)}\n" in text
    table = command("uploads", "list", *of(server)).stdout.splitlines()
    assert table[0].split() == ["UPLOAD", "STATE", "OFFSET", "SIZE", "AGE", "OWNER"]
    assert len(table) == 5


def test_pages_lead_to_every_upload_once(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    ids = sorted(id_of(tus.new(1)) for _ in range(7))
    server.terminate()
    seen: list[str] = []
    after: tuple[str, ...] = ()
    for _ in range(4):
        page = documents("uploads", "list", "--limit", "2", *after, *of(server))
        seen += [str(each["upload"]) for each in page]
        after = ("--after", seen[-1])
    assert seen == ids
    told = command("uploads", "list", "--limit", "2", *of(server)).stderr
    assert told == f"tusd-py uploads: continue with --after {ids[1]}\n"


@pytest.mark.parametrize("running", [True, False])
def test_rm_removes_and_leaves_a_tombstone(make_server: MakeServer, running: bool) -> None:
    server = make_server()
    tus = Tus(server)
    path, kept = tus.finished(b"hello"), tus.new(10)
    if not running:
        server.terminate()
    done = command("uploads", "rm", id_of(path), "none", *of(server))
    assert done.returncode == 1
    assert done.stderr == 'tusd-py uploads: "none": there is no such upload\n'
    assert not server.data_file(id_of(path)).exists()
    if not running:
        server.restart()
    assert tus.head(path).status == 410
    assert tus.offset(kept) == 0
    again = command("uploads", "rm", id_of(path), *of(server))
    assert (again.returncode, "gone already" in again.stderr) == (1, True)
    assert command("uploads", "show", id_of(path), *of(server)).returncode == 1


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("damage", ["garbage", "link", "pipe"])
def test_rm_removes_what_has_no_readable_record_once_it_is_told_to(
    make_server: MakeServer, tmp_path: Path, running: bool, damage: str
) -> None:
    server = make_server()
    tus = Tus(server)
    path, kept = tus.finished(b"hello"), tus.new(10)
    if not running:
        server.terminate()
    record, elsewhere = server.info_file(id_of(path)), tmp_path / "elsewhere"
    elsewhere.write_text("not ours")
    record.unlink()
    if damage == "garbage":
        record.write_text('{"ID": 5')
    elif damage == "link":
        record.symlink_to(elsewhere)
    else:
        os.mkfifo(record)
    done = command("uploads", "rm", id_of(path), *of(server))
    assert (done.returncode, "its record cannot be read" in done.stderr) == (1, True)
    assert "--unreadable" in done.stderr
    assert server.data_file(id_of(path)).read_bytes() == b"hello"
    done = command("uploads", "rm", "--unreadable", id_of(path), *of(server))
    assert (done.returncode, done.stderr) == (0, "") if running else done.returncode == 0
    assert not os.path.lexists(record)
    assert not server.data_file(id_of(path)).exists()
    assert elsewhere.read_text() == "not ours"
    if not running:
        server.restart()
    assert tus.head(path).status in (404, 410)
    assert tus.offset(kept) == 0


def test_rm_spares_an_upload_that_is_being_written_to(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(10)
    with tus.begin_patch(path, 0, 10, b"abc") as patch:
        patch.wait_stored()
        done = command("uploads", "rm", id_of(path), *of(server))
        assert (done.returncode, "a client is writing to it" in done.stderr) == (1, True)
    assert server.data_file(id_of(path)).exists()


def test_rm_with_the_locks_in_the_redis_of_the_operator(
    make_server: MakeServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url, "TUSD_REDIS_TIMEOUT": "10s"}
        server = make_server(env=env)
        tus = Tus(server)
        path, busy = tus.new(10), tus.new(10)
        with tus.begin_patch(busy, 0, 10, b"abc") as patch:
            patch.wait_stored()
            done = command("uploads", "rm", id_of(path), id_of(busy), *of(server), env=env)
        assert done.returncode == 1
        assert done.stderr.startswith(f'tusd-py uploads: "{id_of(busy)}": a client')
        assert tus.head(path).status == 410
        server.terminate()


def test_a_directory_that_is_none_stays_so(tmp_path: Path) -> None:
    directory = ("--upload-dir", str(tmp_path / "none"))
    for words in (
        ("uploads", "list"),
        ("uploads", "show", "a"),
        ("uploads", "rm", "a"),
        ("sweep",),
    ):
        done = command(*words, *directory)
        assert (done.returncode, done.stdout) == (1, "")
        assert "is no directory" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "no action was given; give list, show or rm"),
        (("lst",), '"lst" is no action; give list, show or rm; did you mean list?'),
        (("list", "x"), 'unexpected argument "x"; list lists all'),
        (("rm",), "give ids of uploads to rm"),
        (("list", "--limit", "0"), '--limit "0": give a whole number'),
    ],
)
def test_mistakes(words: tuple[str, ...], problem: str) -> None:
    done = command("uploads", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
