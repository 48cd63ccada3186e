"""Uploads whose data contradicts their record: never served as what was sent, never removed as garbage."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.protocol.test_concatenation import PARTIAL, join, partial
from tests.support.files import files_below
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, path_of
from tests.support.waiting import wait_until
from tests.workers.commands import command, documents, of
from tests.workers.test_sweep_command import abandon


def cut(data: Path) -> None:
    os.truncate(data, 3)


def empty(data: Path) -> None:
    os.truncate(data, 0)


def lengthen(data: Path) -> None:
    with data.open("ab") as file:
        file.write(b"!")


def link(data: Path) -> None:
    aside = data.with_name(f"{data.name}-aside")
    data.rename(aside)
    data.symlink_to(aside)


def directory(data: Path) -> None:
    data.unlink()
    data.mkdir()


Damage = Callable[[Path], None]
DAMAGES = [cut, empty, lengthen, link, directory]


def said(server: ServerProcess, path: str) -> bool:
    """Return whether the log has an error about a damaged upload."""
    return any("ERROR" in line and f"{id_of(path)} is damaged" in line for line in server.lines)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_finished_upload_that_is_damaged_is_a_500(
    make_server: MakeServer, damage: Damage
) -> None:
    server = make_server()
    tus = Tus(server)
    path, other = tus.finished(b"hello"), tus.finished(b"other")
    damage(server.data_file(id_of(path)))
    for response in (
        tus.get(path),
        tus.get(path, {"Range": "bytes=0-1"}),
        tus.head(path),
        tus.patch(path, 5, b""),
    ):
        assert response.status == 500
        assert "hel" not in response.text
        assert "bytes" not in response.text
    wait_until(lambda: said(server, path), "the line in the log")
    assert tus.get(other).body == b"other"
    # Its owner can still delete it.
    if damage is not directory:
        assert tus.delete(path).status == 204
        assert tus.head(path).status == 410


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_part_that_is_damaged_is_not_joined(make_server: MakeServer, damage: Damage) -> None:
    server = make_server()
    tus = Tus(server)
    first, second = partial(tus, b"hello"), partial(tus, b"world")
    damage(server.data_file(id_of(first)))
    assert join(tus, first, second).status == 500
    wait_until(lambda: said(server, first), "the line in the log")
    assert len(list(server.upload_dir.glob("*.info"))) == 2


def test_a_waiting_final_is_not_joined_of_a_damaged_part(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    first, second = partial(tus, b"hello"), tus.new(5, headers=PARTIAL)
    final = path_of(join(tus, first, second)["Location"])
    cut(server.data_file(id_of(first)))
    assert tus.patch(second, 0, b"world").status == 204
    wait_until(lambda: said(server, first), "the join that is refused")
    assert tus.get(final).status in (404, 500)
    assert not server.data_file(id_of(final)).exists()


@pytest.mark.parametrize("away", [False, True], ids=["damaged", "missing"])
def test_a_request_means_the_upload_that_it_names_not_the_one_that_cannot_be_read(
    make_server: MakeServer, away: bool
) -> None:
    """The expiry of a final and its parts depends on all of them; one part is damaged or away."""
    server = make_server()
    tus = Tus(server)
    bad, good = partial(tus, b"hello"), tus.new(5, headers=PARTIAL)
    final = path_of(join(tus, bad, good)["Location"])
    server.terminate()
    data = server.data_file(id_of(bad))
    if away:
        data.rename(data.with_name("aside"))
    else:
        cut(data)
    record = server.upload_dir / f"{id_of(bad)}.info"
    server.restart()
    assert tus.offset(good) == 0
    assert tus.patch(good, 0, b"he").status == 204
    [row] = [
        each for each in documents("uploads", "list", *of(server)) if each["upload"] == id_of(good)
    ]
    assert row["state"] == "uploading"
    assert tus.delete(good).status == 204
    assert tus.head(good).status == 410
    assert tus.delete(final).status == 204
    assert tus.head(final).status == 410
    assert record.exists()
    assert data.exists() != away


def test_a_sweep_passes_over_a_final_one_of_whose_parts_is_damaged(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    bad, good = partial(tus, b"hello"), tus.new(5, headers=PARTIAL)
    final = path_of(join(tus, good, bad)["Location"])
    server.terminate()
    cut(server.data_file(id_of(bad)))
    server.restart()
    for _ in range(2):
        done = command("sweep", "--json", *of(server))
        server.wait_for_line("is damaged")
        summary = json.loads(done.stdout.splitlines()[-1])
        assert (summary["seen"], summary["expired"]) == (3, 0)
    assert tus.delete(final).status == 204


def test_an_unfinished_upload_that_is_too_long_takes_no_bytes(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(5)
    server.data_file(id_of(path)).write_bytes(b"too long")
    assert tus.patch(path, 5, b"").status == 500
    assert tus.head(path).status == 500
    wait_until(lambda: said(server, path), "the line in the log")


@pytest.mark.parametrize("damage", DAMAGES)
def test_nobody_is_told_that_a_damaged_upload_is_finished(
    make_server: MakeServer, tmp_path: Path, damage: Damage
) -> None:
    hooks, told = tmp_path / "hooks.py", tmp_path / "told"
    hooks.write_text(
        "def post_finish(event):\n"
        f"    with open({str(told)!r}, 'a') as file:\n"
        "        file.write(event.upload.id + '\\n')\n"
    )
    flags = ("--hook", str(hooks), "--hooks-delivery", "workers")
    server = make_server(*flags)
    tus = Tus(server)
    path, other = tus.finished(b"hello"), tus.finished(b"other")
    server.terminate()
    damage(server.data_file(id_of(path)))
    server.env["TUSD_JOBS"] = "on"
    server.restart()
    # The file is there a moment before its line is.
    wait_until(lambda: told.exists() and told.read_text().endswith("\n"), "the other event")
    wait_until(lambda: said(server, path), "what the worker says")
    assert told.read_text().split() == [id_of(other)]
    # The event of the other one is forgotten a moment after its line is written.
    outbox = server.upload_dir / ".tusd-py" / "outbox"
    wait_until(
        lambda: not any(id_of(other) in str(each) for each in files_below(outbox)),
        "the end of the other event",
    )
    # It waits, and has not failed.
    [waiting] = documents("events", "list", *of(server))
    assert waiting["upload"] == id_of(path)


def test_the_operator_lists_and_removes_what_is_damaged(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    damaged, missing, whole = (tus.finished(b"hello") for _ in range(3))
    cut(server.data_file(id_of(damaged)))
    server.data_file(id_of(missing)).unlink()
    done = command("uploads", "list", *of(server))
    assert f"{id_of(damaged)} is damaged" in done.stderr
    assert f"the bytes of {id_of(missing)} are not" in done.stderr
    assert id_of(whole) in done.stdout
    assert command("uploads", "rm", id_of(damaged), id_of(missing), *of(server)).returncode == 0
    assert tus.head(damaged).status == tus.head(missing).status == 410
    assert tus.get(whole).body == b"hello"


def test_a_damaged_upload_goes_when_it_is_due(make_server: MakeServer) -> None:
    server = make_server("--retain-finished", "1d")
    tus = Tus(server)
    path, kept = tus.finished(b"hello"), tus.finished(b"hello")
    server.terminate()
    long_ago = time.time() - 2 * 86_400
    info = server.info_file(id_of(path))
    at = info.read_bytes().rindex(b":") + 1
    info.write_bytes(info.read_bytes()[:at] + b"%.3f}}" % long_ago)
    for each in (path, kept):
        cut(server.data_file(id_of(each)))
    command("sweep", *of(server), "--retain-finished", "1d")
    assert not server.data_file(id_of(path)).exists()
    assert server.data_file(id_of(kept)).exists()


# Missing bytes


@pytest.mark.parametrize("content", [b"", b"hel", b"hello"])
def test_bytes_that_are_away_are_waited_for(
    make_server: MakeServer, tmp_path: Path, content: bytes
) -> None:
    server = make_server("--log-format", "json")
    tus = Tus(server)
    path = tus.new(5)
    if content:
        assert tus.patch(path, 0, content).status == 204
    server.terminate()
    data = server.data_file(id_of(path))
    long_ago = time.time() - 2 * 3600
    os.utime(server.info_file(id_of(path)), (long_ago, long_ago))
    data.rename(tmp_path / "away")
    server.restart()
    command("sweep", *of(server))
    # A client must not start again meanwhile.
    response = tus.head(path)
    assert (response.status, "Retry-After" in response) == (423, True)
    for response in (tus.patch(path, len(content), b"x"), tus.get(path), tus.delete(path)):
        assert (response.status, "Retry-After" in response) == (503, True)
    server.wait_for_line(f"the bytes of {id_of(path)} are not")
    (tmp_path / "away").rename(data)
    assert tus.offset(path) == len(content)
    if content == b"hello":
        assert tus.get(path).body == content
    else:
        assert tus.patch(path, len(content), b"hello"[len(content) :]).status == 204


def test_an_unfinished_upload_without_bytes_goes_once_they_are_missing_for_long(
    make_server: MakeServer,
) -> None:
    server = make_server()
    tus = Tus(server)
    unfinished, finished = tus.new(5), tus.finished(b"hello")
    abandon(server, unfinished)
    for path in (unfinished, finished):
        server.data_file(id_of(path)).unlink()
    # The last byte may have arrived at any time before they were found missing.
    command("sweep", *of(server))
    assert tus.head(unfinished).status == tus.head(finished).status == 423
    marks = server.upload_dir / ".tusd-py" / "missing"
    for mark in marks.iterdir():
        os.utime(mark, (1.0, 1.0))
    command("sweep", *of(server))
    assert tus.head(unfinished).status == 410
    assert tus.head(finished).status == 423
    command("sweep", *of(server))
    assert not list(marks.iterdir())


def test_half_a_creation_is_cleared_away(make_server: MakeServer) -> None:
    server = make_server()
    server.terminate()
    long_ago = time.time() - 2 * 3600
    made = []
    for name, data in (("record-alone", None), ("both", b""), ("bytes", b"hel")):
        record = server.info_file(name)
        record.touch()
        made.append(record)
        if data is not None:
            server.data_file(name).write_bytes(data)
        os.utime(record, (long_ago, long_ago))
    command("sweep", *of(server))
    left = sorted(path.name for path in server.upload_dir.iterdir() if path.is_file())
    # Bytes without a readable record are left for the operator.
    assert left == ["bytes", "bytes.info"]
