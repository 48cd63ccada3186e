"""What real proxies let through, with the configuration that docs/operating.md gives (docs/protocol.md says what was found)."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docs.blocks import blocks
from tests.ietf.url_session import UrlSession
from tests.support import ports
from tests.support.ietf import Ietf, announced
from tests.support.requirements import require_program
from tests.support.server import ServerProcess
from tests.support.tus import path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection

DATA = bytes(range(256)) * 8000

NGINX = """
daemon off; error_log stderr; pid {directory}/nginx.pid; events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    server {{ listen 127.0.0.1:{port}; {location} }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 30s
  timeout client 60s
  timeout server 60s
frontend uploads
  bind 127.0.0.1:{port}
  default_backend server
backend server
  server one 127.0.0.1:{target}
"""


@contextmanager
def running(kind: str, server: ServerProcess, directory: Path) -> Iterator[tuple[str, int]]:
    """A proxy in front of the server; yields its address."""
    with ports.reserve("127.0.0.1", 0) as holder:
        port: int = holder.getsockname()[1]
        config = directory / "proxy.conf"
        if kind.startswith("nginx"):
            (location,) = (
                each for each in blocks("docs/operating.md", "nginx") if "proxy_pass" in each
            )
            location = location.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}")
            if kind.endswith("keep-alive"):
                location = location.replace("{", '{ proxy_set_header Connection "";', 1)
            config.write_text(NGINX.format(directory=directory, port=port, location=location))
            command = [require_program("nginx"), "-p", str(directory), "-c", str(config)]
        else:
            config.write_text(HAPROXY.format(port=port, target=server.port))
            command = [require_program("haproxy"), "-f", str(config)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: listens(port), kind, 30)
            yield "127.0.0.1", port
        finally:
            process.terminate()
            process.wait(30)


def listens(port: int) -> bool:
    try:
        Connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture(scope="module", params=["nginx", "nginx-keep-alive", "haproxy"])
def proxy(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    server: ServerProcess,
) -> Iterator[tuple[str, int]]:
    with running(request.param, server, tmp_path_factory.mktemp(request.param)) as address:
        yield address


def test_interim_responses_pass(server: ServerProcess, proxy: tuple[str, int]) -> None:
    """The URL before the body is sent, and an offset with half of it there."""
    ietf = Ietf(server, 8)
    with Connection(proxy) as connection:
        fields = {**ietf.marks(), **ietf.complete(True), "Content-Length": str(len(DATA))}
        connection.send_head("POST", ietf.collection, fields)
        location = announced(connection)["Location"]
        connection.send(DATA[: len(DATA) // 2])
        progress = connection.read_any()
        assert progress.status == 104
        assert 0 < int(progress["Upload-Offset"]) <= len(DATA) // 2
        connection.send(DATA[len(DATA) // 2 :])
        response = connection.read_response("POST")
        # nginx takes the end of its connection to the server for that of the response.
        began = time.monotonic()
        assert connection.request("HEAD", path_of(location), ietf.marks()).status == 204
        assert time.monotonic() - began < 3
    assert (response.status, response["Location"]) == (201, location)
    assert ietf.stored(path_of(location)) == DATA


def test_a_cut_upload_is_resumed(server: ServerProcess, proxy: tuple[str, int]) -> None:
    ietf = Ietf(server, 6)
    with Connection(proxy) as connection:
        fields = {**ietf.marks(), **ietf.complete(True), "Content-Length": str(len(DATA))}
        connection.send_head("POST", ietf.collection, fields)
        path = path_of(announced(connection)["Location"])
        connection.send(DATA[:1_000_000])
        ietf.wait_stored(path, 1_000_000)
    session = UrlSession(ietf, proxy, path=path)
    assert session.resume(DATA).status == 201
    assert ietf.stored(path) == DATA


def test_a_close_without_a_response_passes(server: ServerProcess, proxy: tuple[str, int]) -> None:
    """Another request takes the upload over; what its own client sees is no final response."""
    ietf = Ietf(server, 6)
    with Connection(proxy) as connection:
        fields = {**ietf.marks(), **ietf.complete(True), "Content-Length": str(len(DATA))}
        connection.send_head("POST", ietf.collection, fields)
        path = path_of(announced(connection)["Location"])
        connection.send(DATA[:1000])
        ietf.wait_stored(path, 1000)
        assert ietf.offset(path) == 1000
        assert b"HTTP/1.1 2" not in connection.read_to_end()
