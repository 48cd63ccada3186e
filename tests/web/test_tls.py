"""Over TLS, without a proxy: uploads of any size, and downloads to clients that stop reading."""

from __future__ import annotations

import hashlib
import os
import random
import re
import ssl
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.certificate import make_certificate
from tests.support.server import WITHOUT_DIRECT_BODIES
from tests.support.tus import Tus, path_of
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
