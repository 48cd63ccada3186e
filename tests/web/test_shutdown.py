"""SIGTERM: running requests end at once and keep every byte, waiting ones are refused, the exit code is 0."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.events import Recorder
from tests.support.tus import OCTETS, Tus, checksum, id_of, wait_for_size
from tests.support.waiting import wait_until
from tests.support.wire import Connection, Response

BODY = bytes(range(256)) * 8_000  # 2 MB

PATIENT = ("--shutdown-timeout", "60s")
"""Of a server that ends without using that time up: ``wait`` gives up after 30 s."""

PROMPT = 9.0
"""Seconds: under the default ``--shutdown-timeout`` of 10 s, for servers that were given less."""


def assert_told_of_the_shutdown(response: Response) -> None:
    assert (response.status, response.code) == (503, "ERR_SERVER_SHUTDOWN")
    assert response["Connection"].lower() == "close"
    assert response["Tus-Resumable"] == "1.0.0"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once(make_server: MakeServer, number: signal.Signals) -> None:
    server = make_server(*PATIENT)
    server.signal(number)
    assert server.wait() == 0
    assert "Traceback" not in server.log()


def test_bodies_in_flight_end_and_their_bytes_are_kept(make_server: MakeServer) -> None:
    server = make_server(*PATIENT)
    tus = Tus(server)
    sent = {"small": 5, "large": 1_000_000, "nothing": 0}
    paths = {name: tus.new(len(BODY)) for name in sent}
    patches = {
        name: tus.begin_patch(paths[name], 0, len(BODY), BODY[:size]) for name, size in sent.items()
    }
    for patch in patches.values():
        patch.wait_stored()
    # A request of its own shows that the one without a byte has been accepted too.
    assert tus.options().status == 204
    server.signal(signal.SIGTERM)
    for patch in patches.values():
        assert_told_of_the_shutdown(patch.response())
        patch.close()
    assert server.wait() == 0
    server.restart()
    for name, size in sent.items():
        assert tus.offset(paths[name]) == size
        assert tus.patch(paths[name], size, BODY[size:]).status == 204
        assert tus.stored(paths[name]) == BODY


def test_chunked_bodies_and_creations_end_too(make_server: MakeServer) -> None:
    server = make_server(*PATIENT)
    tus = Tus(server)
    path = tus.new(len(BODY))
    with tus.begin_patch(path, 0, None, BODY[:70_000]) as patch, tus.connect() as creation:
        patch.wait_stored()
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "100", "Content-Type": OCTETS}
        creation.send_head("POST", tus.collection, {**headers, "Content-Length": "100"})
        creation.send(b"0123456789")
        wait_until(lambda: len(tus.data_files()) == 2, "the creation")
        (created,) = set(tus.data_files()) - {id_of(path)}
        wait_for_size(server, tus.collection + created, 10)
        server.signal(signal.SIGTERM)
        assert_told_of_the_shutdown(patch.response())
        assert creation.read_response("POST").status == 503
    assert server.wait() == 0
    server.restart()
    assert tus.offset(path) == 70_000
    assert tus.offset(tus.collection + created) == 10


def test_an_unverified_chunk_is_discarded(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(len(BODY) + 5)
    tus.patch(path, 0, b"first")
    headers = {"Upload-Checksum": checksum(BODY)}
    with tus.begin_patch(path, 5, len(BODY), BODY[:100_000], headers) as patch:
        patch.wait_stored()
        server.signal(signal.SIGTERM)
        assert_told_of_the_shutdown(patch.response())
    assert server.wait() == 0
    assert tus.stored(path) == b"first"
    server.restart()
    assert tus.offset(path) == 5


def test_those_who_wait_are_told_and_a_finish_comes_to_its_end(
    make_server: MakeServer, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    recorder.hold_pre_finish()
    server = make_server(*recorder.flags, *PATIENT, env=recorder.env)
    tus = Tus(server)
    path = tus.new(5)
    with tus.begin_patch(path, 0, 5, b"hello") as holder, tus.connect() as waiter:
        recorder.wait_for("pre-finish", id_of(path))
        waiter.send_head("PATCH", path, tus.patch_headers(5, {"Content-Length": "0"}))
        # Answered after the waiter's request was read, as both come to the same event loop.
        assert tus.options().status == 204
        server.signal(signal.SIGTERM)
        assert_told_of_the_shutdown(waiter.read_response("PATCH"))
        assert waiter.ended()
        recorder.release()
        assert holder.response().status == 204
    assert server.wait() == 0
    assert "post-finish" in recorder.types(id_of(path))


def test_what_does_not_end_in_time_does_not_hold_the_exit_up(
    make_server: MakeServer, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    recorder.hold_pre_finish()
    server = make_server(*recorder.flags, "--shutdown-timeout", "500ms", env=recorder.env)
    tus = Tus(server)
    path = tus.new(5)
    with tus.begin_patch(path, 0, 5, b"hello"):
        recorder.wait_for("pre-finish", id_of(path))
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - began < PROMPT
    recorder.hold.unlink()
    server.restart()
    assert tus.offset(path) == 5
    recorder.wait_for("post-finish", id_of(path))


def test_a_hook_that_hangs_does_not_hold_the_exit_up(
    make_server: MakeServer, tmp_path: Path
) -> None:
    hook = tmp_path / "hanging.py"
    begun = tmp_path / "begun"
    hook.write_text(
        "import pathlib, threading\n"
        "def pre_finish(event):\n"
        f"    pathlib.Path({str(begun)!r}).touch()\n"
        "    threading.Event().wait()\n"
    )
    server = make_server("--hook", str(hook), "--shutdown-timeout", "500ms")
    tus = Tus(server)
    path = tus.new(5)
    with tus.begin_patch(path, 0, 5, b"hello"):
        wait_until(begun.exists, "the hook")
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        # No exit of a healthy server, as something of it had to be abandoned: whatever the code.
        server.wait()
        assert time.monotonic() - began < PROMPT
    assert tus.stored(path) == b"hello"


def test_idle_connections_do_not_hold_the_exit_up(make_server: MakeServer) -> None:
    server = make_server(*PATIENT)
    tus = Tus(server)
    with tus.connect() as idle, tus.connect() as silent, tus.connect() as half:
        assert idle.request("OPTIONS", tus.collection).status == 204
        half.send(b"PATCH /files/x HTT")
        assert tus.options().status == 204
        server.signal(signal.SIGTERM)
        assert idle.ended()
        assert silent.ended()
        assert server.wait() == 0


def test_a_download_that_nobody_reads_does_not_hold_the_exit_up(make_server: MakeServer) -> None:
    server = make_server("--shutdown-timeout", "500ms")
    tus = Tus(server)
    path = tus.finished(BODY * 8)
    with Connection(server.address, receive_buffer=4096) as slow:
        slow.send_head("GET", path)
        assert slow.sock.recv(10) == b"HTTP/1.1 2"
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - began < PROMPT


@pytest.mark.parametrize("workers", [1, 2])
def test_the_end_has_time_although_requests_used_theirs_up(
    make_server: MakeServer, tmp_path: Path, workers: int
) -> None:
    hook = tmp_path / "slow.py"
    ended = tmp_path / "ended"
    hook.write_text(
        "import time\n"
        "def pre_create(event):\n"
        "    pass\n"
        "def stop():\n"
        "    time.sleep(0.7)\n"
        f"    with open({str(ended)!r}, 'a') as file:\n"
        "        file.write('x')\n"
    )
    server = make_server(
        "--hook", str(hook), "--shutdown-timeout", "500ms", "--workers", str(workers)
    )
    path = Tus(server).finished(BODY * 8)
    with Connection(server.address, receive_buffer=4096) as slow:
        slow.send_head("GET", path)
        assert slow.sock.recv(10) == b"HTTP/1.1 2"
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert ended.read_text() == "x" * workers


def test_nobody_new_is_let_in(make_server: MakeServer, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.hold_pre_finish()
    server = make_server(*recorder.flags, *PATIENT, env=recorder.env)
    tus = Tus(server)
    path = tus.new(5)
    with tus.begin_patch(path, 0, 5, b"hello") as holder, tus.connect() as early:
        recorder.wait_for("pre-finish", id_of(path))
        assert early.request("OPTIONS", tus.collection).status == 204
        server.signal(signal.SIGTERM)

        def refused() -> bool:
            try:
                return tus.create(5).status == 503
            except (ConnectionError, TimeoutError):
                return True

        # A signal is not yet heard when it is sent; but once somebody was refused, all are.
        wait_until(refused, "a refusal")
        before = tus.data_files()
        for _ in range(5):
            assert refused()
        recorder.release()
        assert holder.response().status == 204
    assert server.wait() == 0
    assert tus.data_files() == before


def test_the_port_and_the_directory_are_free_at_once(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(10)
    for offset in range(3):
        with tus.begin_patch(path, offset, 10 - offset, b"x") as patch:
            patch.wait_stored()
            server.signal(signal.SIGTERM)
            assert patch.response().status == 503
        assert server.wait() == 0
        server.restart()
        assert tus.offset(path) == offset + 1


def test_many_bodies_end_together(make_server: MakeServer) -> None:
    server = make_server(*PATIENT)
    tus = Tus(server)
    paths = [tus.new(1000) for _ in range(50)]
    patches = [tus.begin_patch(path, 0, 1000, b"x" * 100) for path in paths]
    for patch in patches:
        patch.wait_stored()
    server.signal(signal.SIGTERM)
    for patch in patches:
        assert_told_of_the_shutdown(patch.response())
        patch.close()
    assert server.wait() == 0
    server.restart()
    assert [tus.offset(path) for path in paths] == [100] * 50
