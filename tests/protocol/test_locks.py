"""Locks, as tus clients expect them: T38 to T40."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.events import Recorder
from tests.support.tus import Tus, id_of, wait_for_size
from tests.support.waiting import wait_until
from tests.support.wire import Connection, Response

BODY = bytes(range(256)) * 8_000  # 2 MB

AT_ONCE = 15.0
"""Seconds that an answer may take that shall not wait for a time-out (of 20 s and 60 s)."""

held = pytest.mark.parametrize("sent", [5, 1_000_000])


# -- T38 ---------------------------------------------------------------------------------------


@held
def test_T38_head_is_answered_at_once_while_a_body_is_coming(tus: Tus, sent: int) -> None:
    path = tus.new(len(BODY))
    with tus.begin_patch(path, 0, len(BODY), BODY[:sent]) as patch:
        patch.wait_stored()
        began = time.monotonic()
        assert tus.offset(path) == sent
        assert time.monotonic() - began < AT_ONCE


@held
def test_T38_the_holder_keeps_what_it_stored_and_ends(tus: Tus, sent: int) -> None:
    path = tus.new(len(BODY))
    with tus.begin_patch(path, 0, len(BODY), BODY[:sent]) as patch:
        patch.wait_stored()
        assert tus.offset(path) == sent
        response = patch.response()
        assert (response.status, response.code) == (409, "ERR_UPLOAD_INTERRUPTED")
        assert response["Connection"].lower() == "close"
        assert patch.connection.ended()
    assert tus.stored(path) == BODY[:sent]


@held
def test_T38_a_new_patch_takes_over(tus: Tus, sent: int) -> None:
    path = tus.new(len(BODY))
    with tus.begin_patch(path, 0, len(BODY), BODY[:sent]) as patch:
        patch.wait_stored()
        response = tus.patch(path, sent, BODY[sent:])
        assert (response.status, response["Upload-Offset"]) == (204, str(len(BODY)))
        assert patch.response().status == 409
    assert tus.stored(path) == BODY


@held
def test_T38_a_new_patch_at_the_old_offset_learns_the_new_one(tus: Tus, sent: int) -> None:
    path = tus.new(len(BODY))
    with tus.begin_patch(path, 0, len(BODY), BODY[:sent]) as patch:
        patch.wait_stored()
        response = tus.patch(path, 0, BODY)
        assert (response.status, response["Upload-Offset"]) == (409, str(sent))


def test_T38_a_holder_that_was_ended_stores_no_more(tus: Tus) -> None:
    path = tus.new(len(BODY))
    with tus.begin_patch(path, 0, len(BODY), BODY[:10]) as patch:
        patch.wait_stored()
        assert tus.offset(path) == 10
        patch.response()
        with suppress(BrokenPipeError, ConnectionResetError):
            patch.send(b"late bytes")
        assert tus.patch(path, 10, b"").status == 204
    assert tus.stored(path) == BODY[:10]


def test_T38_a_chunked_holder_lets_go(tus: Tus) -> None:
    path = tus.new(len(BODY))
    with tus.begin_patch(path, 0, None, BODY[:70_000]) as patch:
        patch.wait_stored()
        assert tus.offset(path) == 70_000
        assert patch.response().status == 409


def test_T38_a_creation_lets_go_as_well(make_server: MakeServer) -> None:
    tus = Tus(make_server())
    headers = tus.patch_headers(0, {"Upload-Offset": None, "Content-Length": "100"})
    with tus.connect() as connection:
        connection.send_head("POST", tus.collection, {**headers, "Upload-Length": "100"})
        connection.send(b"0123456789")
        path = wait_for_upload(tus, 10)
        assert tus.offset(path) == 10
        assert connection.read_response("POST").code == "ERR_UPLOAD_INTERRUPTED"
    assert tus.patch(path, 10, b"x" * 90).status == 204


def wait_for_upload(tus: Tus, size: int) -> str:
    """The path of the directory's only upload, once it has ``size`` bytes."""
    wait_until(lambda: len(tus.data_files()) == 1, "an upload")
    path = tus.collection + tus.data_files()[0]
    wait_for_size(tus.server, path, size)
    return path


def test_T38_newcomers_at_the_same_time_are_all_answered(tus: Tus) -> None:
    path = tus.new(len(BODY))
    answers: list[Response] = []
    with tus.begin_patch(path, 0, len(BODY), BODY[:1000]) as patch:
        patch.wait_stored()
        heads = [threading.Thread(target=lambda: answers.append(tus.head(path))) for _ in range(10)]
        for thread in heads:
            thread.start()
        for thread in heads:
            thread.join()
    assert [answer.status for answer in answers] == [200] * 10
    assert [answer["Upload-Offset"] for answer in answers] == ["1000"] * 10


def test_T38_bodies_at_the_same_time_never_mix(tus: Tus) -> None:
    path = tus.new(len(BODY))
    rivals = [tus.begin_patch(path, 0, len(BODY)) for _ in range(4)]
    for rival in rivals:
        # One that was told to let go may be closed by now.
        with suppress(BrokenPipeError, ConnectionResetError):
            rival.connection.send(BODY[:500_000])
    for rival in rivals:
        rival.close()
    offset = tus.offset(path)
    assert tus.patch(path, offset, BODY[offset:]).status == 204
    assert tus.stored(path) == BODY


def test_T38_other_uploads_are_not_touched(tus: Tus) -> None:
    first, second = tus.new(10), tus.new(10)
    with tus.begin_patch(first, 0, 10, b"01234") as patch:
        patch.wait_stored()
        assert tus.offset(second) == 0
        assert tus.patch(second, 0, b"0123456789").status == 204
        patch.send(b"56789")
        assert patch.response().status == 204


# -- T39 ---------------------------------------------------------------------------------------


def test_T39_a_holder_that_does_not_let_go_in_time_is_423(
    make_server: MakeServer, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    recorder.hold_pre_finish()
    tus = Tus(make_server(*recorder.flags, "--acquire-lock-timeout", "1s", env=recorder.env))
    path = tus.new(5)
    with tus.begin_patch(path, 0, 5, b"hello") as patch:
        recorder.wait_for("pre-finish", id_of(path))
        for response in (tus.head(path), tus.patch(path, 0, b"hello"), tus.delete(path)):
            assert response.status == 423
            assert response["Tus-Resumable"] == "1.0.0"
        recorder.release()
        assert patch.response().status == 204
    assert tus.offset(path) == 5


# -- T40 ---------------------------------------------------------------------------------------


def slow_reader(tus: Tus, path: str) -> Connection:
    """A GET whose body is not read: the server cannot get rid of it."""
    connection = Connection(tus.server.address, receive_buffer=4096)
    connection.send_head("GET", path)
    return connection


def test_T40_reads_do_not_wait_for_reads(tus: Tus) -> None:
    data = bytes(range(256)) * 64_000  # 16 MB: more than sockets hold
    path = tus.finished(data)
    with slow_reader(tus, path) as slow:
        assert slow.sock.recv(10) == b"HTTP/1.1 2"
        began = time.monotonic()
        assert tus.get(path).body == data
        assert tus.offset(path) == len(data)
        assert time.monotonic() - began < AT_ONCE
        assert len(slow.sock.recv(10)) == 10
