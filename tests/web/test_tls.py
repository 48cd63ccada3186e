"""TLS without a proxy: uploads of any size, and downloads to clients that stop reading."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import socket
import ssl
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.certificate import make_certificate
from tests.support.events import Recorder
from tests.support.server import WITHOUT_DIRECT_BODIES
from tests.support.tus import Tus, id_of, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection


class TlsTus(Tus):
    """A client that trusts the server's certificate."""

    context: ssl.SSLContext

    def connect(self, timeout: float = 20.0) -> Connection:
        return Connection(self.server.address, timeout=timeout, tls=self.context)


@pytest.fixture
def tus(make_server: MakeServer, tmp_path: Path) -> TlsTus:
    certificate, key = make_certificate(tmp_path)
    server = make_server(
        *("--tls-certificate", str(certificate), "--tls-key", str(key), "--network-timeout", "3s")
    )
    client = TlsTus(server)
    client.context = ssl.create_default_context(cafile=str(certificate))
    return client


def test_bodies_of_any_size_arrive(tus: TlsTus) -> None:
    for size in (0, 1, 16 * 1024, 5_000_000):
        data = random.Random(size).randbytes(size)
        created = tus.create(size)
        assert created["Location"].startswith("https://127.0.0.1:")
        path = path_of(created["Location"])
        if data:
            assert tus.patch(path, 0, data).status == 204
        assert hashlib.sha256(tus.get(path).body).digest() == hashlib.sha256(data).digest()
    page = tus.request("GET", "/metrics").text
    ways = dict(re.findall(r'^tusd_bodies_total{way="(\w+)"} (\S+)', page, re.MULTILINE))
    expected = (0, 3) if WITHOUT_DIRECT_BODIES else (1, 2)
    assert (float(ways["direct"]), float(ways["stream"])) == expected


def test_a_download_that_nobody_reads_ends(tus: TlsTus) -> None:
    before = tus.server.open_sockets()
    path = tus.finished(os.urandom(1024) * 30_000)
    wait_until(lambda: tus.server.open_sockets() == before, "the upload's connections to end")
    with Connection(tus.server.address, tls=tus.context, receive_buffer=4096) as stalled:
        stalled.send_head("GET", path)
        assert stalled.sock.recv(10) == b"HTTP/1.1 2"
        wait_until(lambda: tus.server.open_sockets() == before, "the server to give up", 30)


@pytest.mark.parametrize("behind_an_upload", [False, True])
def test_a_download_that_is_read_late_arrives(tus: TlsTus, behind_an_upload: bool) -> None:
    data = random.Random(7).randbytes(30_000_000)
    path = tus.finished(data)
    with Connection(tus.server.address, tls=tus.context, receive_buffer=65_536) as late:
        if behind_an_upload:
            other = tus.new(1_000_000)
            response = late.request("PATCH", other, tus.patch_headers(0), data[:1_000_000])
            assert response.status == 204
        late.send_head("GET", path, [("Connection", "close")])
        # It has stopped sending by now, or soon will: nobody has taken more than the first bytes.
        begin = late.sock.recv(10)
        assert begin == b"HTTP/1.1 2"
        head, _, body = (begin + late.read_to_end()).partition(b"\r\n\r\n")
    assert b"content-length: 30000000" in head.lower()
    assert hashlib.sha256(body).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("refused", [False, True])
def test_what_a_slow_client_asked_for_arrives_before_the_end(tus: TlsTus, refused: bool) -> None:
    """Also if a request with a body that is not read comes right behind it."""
    data = random.Random(8).randbytes(20_000_000)
    path = tus.finished(data)
    with Connection(tus.server.address, tls=tus.context, receive_buffer=65_536) as slow:
        slow.send_head("GET", path, [] if refused else [("Connection", "close")])
        if refused:
            slow.send_head("PATCH", path, [("Content-Length", "1000000")])

        def send_on() -> None:
            # The rest of the body, which nobody wants.
            if refused:
                with contextlib.suppress(OSError):
                    slow.send(b"x")

        # For longer than the server waits for a client that takes nothing.
        received = slow.read_as_a_slow_link(15_000_000, 17_500_000, send_on)
    head, _, rest = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert hashlib.sha256(rest[: len(data)]).digest() == hashlib.sha256(data).digest()
    assert rest[len(data) :].startswith(b"HTTP/1.1 4" if refused else b"")


def test_a_client_that_ends_its_sending_side_gets_what_it_asked_for(
    make_server: MakeServer, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    certificate, key = make_certificate(tmp_path)
    flags = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    tus = TlsTus(make_server(*flags, *recorder.flags, env=recorder.env))
    tus.context = ssl.create_default_context(cafile=str(certificate))
    recorder.hold_pre_finish()
    path = tus.new(5)
    with tus.connect() as connection:
        headers = tus.patch_headers(0, {"Content-Length": "5"})
        connection.send_head("PATCH", path, headers)
        connection.send(b"hello")
        recorder.wait_for("pre-finish", id_of(path))
        # Only the socket's: an SSLSocket forgets its keys when it is shut down.
        socket.socket.shutdown(connection.sock, socket.SHUT_WR)
        assert tus.options().status == 204
        recorder.release()
        assert connection.read_response("PATCH")["Upload-Offset"] == "5"
        connection.read_to_end()
    data = random.Random(3).randbytes(10_000_000)
    path = tus.finished(data)
    with Connection(tus.server.address, tls=tus.context, receive_buffer=65_536) as late:
        late.send_head("GET", path)
        begin = late.sock.recv(10)
        socket.socket.shutdown(late.sock, socket.SHUT_WR)
        assert hashlib.sha256((begin + late.read_to_end())[-len(data) :]).digest() == (
            hashlib.sha256(data).digest()
        )


def test_connections_that_never_begin_are_counted_and_ended(
    make_server: MakeServer, tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path)
    flags = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    server = make_server(*flags, "--max-connections", "4", "--network-timeout", "5s")
    tus = TlsTus(server)
    tus.context = ssl.create_default_context(cafile=str(certificate))
    before = server.open_sockets()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(Connection(server.address)) for _ in range(4)]
        wait_until(lambda: server.open_sockets() == before + 4, "the connections")
        refused = tus.options()
        assert (refused.status, refused["Retry-After"]) == (503, "5")
        # Of as many as anybody likes to open only so many stay.
        more = [stack.enter_context(Connection(server.address)) for _ in range(100)]
        assert all(connection.ended() for connection in more[20:])
        assert all(connection.ended() for connection in silent)
    wait_until(lambda: server.open_sockets() == before, "their end")
    assert tus.options().status == 204


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01", b"\x00"])
def test_what_is_no_handshake_ends_without_news(tus: TlsTus, sent: bytes) -> None:
    lines = len(tus.server.lines)
    with Connection(tus.server.address) as stranger:
        stranger.send(sent)
        stranger.half_close()
        with contextlib.suppress(ConnectionResetError):
            stranger.read_to_end()
    assert tus.options().status == 204
    assert not [line for line in tus.server.lines[lines:] if "request" not in line]
