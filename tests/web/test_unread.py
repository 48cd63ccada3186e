"""Clients that do not read what they have asked for, over plain HTTP: however their connection ends, it does end."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.server import ServerProcess
from tests.support.tus import OCTETS, Tus, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection, head_bytes

PARTS = 9000
MANY = 3
"""Responses of a megabyte, of which the system takes all but the last: a further one is not begun before they are read."""
FLAGS = ("--network-timeout", "4s", "--keep-alive-timeout", "1s")
TUS = {"Tus-Resumable": "1.0.0"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tus]:
    """A server with short time-outs."""
    with ServerProcess(tmp_path_factory.mktemp("unread") / "uploads", *FLAGS) as process:
        yield Tus(process)


@pytest.fixture(scope="module")
def path(served: Tus) -> str:
    return long_final(served)


def long_final(tus: Tus) -> str:
    """A final whose responses to HEAD take a megabyte, as they list its parts."""
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    urls = " ".join([f"http://{'h' * 60}{part}"] * PARTS)
    created = tus.create(headers={**TUS, "Content-Length": "0", "Upload-Concat": f"final;{urls}"})
    assert created.status == 201, created.text
    return path_of(created["Location"])


def asked(path: str, **fields: str) -> bytes:
    more = {name.replace("_", "-"): value for name, value in fields.items()}
    return head_bytes("HEAD", path, {**TUS, **more}, "localhost")


def closed(tus: Tus, path: str, connection: Connection) -> None:
    connection.send(asked(path) * (MANY - 1) + asked(path, connection="close"))


def kept_open(tus: Tus, path: str, connection: Connection) -> None:
    connection.send(asked(path) * MANY)


def half_closed(tus: Tus, path: str, connection: Connection) -> None:
    connection.send(asked(path) * MANY)
    wait_for_response(connection)
    connection.half_close()


def half_closed_at_once(tus: Tus, path: str, connection: Connection) -> None:
    connection.send(asked(path) * MANY)
    connection.half_close()


def with_a_body_that_is_not_read(tus: Tus, path: str, connection: Connection) -> None:
    connection.send(
        asked(path) * (MANY - 1) + asked(path, connection="close", content_length="100000")
    )


def with_a_body_that_is_cut(tus: Tus, path: str, connection: Connection, size: int) -> None:
    other = tus.new(size)
    fields = tus.patch_headers(0, {"Content-Length": str(size), "Content-Type": OCTETS})
    connection.send(asked(path) * MANY + head_bytes("PATCH", other, fields, "localhost") + b"begin")
    wait_until(lambda: tus.stored(other) == b"begin", "the beginning of the body")
    connection.half_close()


def with_a_small_body_that_is_cut(tus: Tus, path: str, connection: Connection) -> None:
    with_a_body_that_is_cut(tus, path, connection, 1000)


def with_a_large_body_that_is_cut(tus: Tus, path: str, connection: Connection) -> None:
    with_a_body_that_is_cut(tus, path, connection, 1_000_000)


def with_a_malformed_body(tus: Tus, path: str, connection: Connection) -> None:
    fields = tus.patch_headers(0, {"Transfer-Encoding": "chunked"})
    other = tus.new(100)
    head = head_bytes("PATCH", other, fields, "localhost")
    connection.send(asked(path) * MANY + head + b"5\r\nhello\r\n")
    wait_until(lambda: tus.stored(other) == b"hello", "the beginning of the body")
    connection.send(b"no chunk\r\n")


def wait_for_response(connection: Connection) -> None:
    """Return when the response has begun to arrive; it stays in the socket."""
    assert connection.sock.recv(1, socket.MSG_PEEK)


Ending = Callable[[Tus, str, Connection], None]
ENDINGS: tuple[Ending, ...] = (
    closed,
    kept_open,
    half_closed,
    half_closed_at_once,
    with_a_body_that_is_not_read,
    with_a_small_body_that_is_cut,
    with_a_large_body_that_is_cut,
    with_a_malformed_body,
)


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda each: each.__name__)
def test_the_connection_of_a_client_that_never_reads_ends(
    served: Tus, path: str, ending: Ending
) -> None:
    assert open_connections(served) == 1
    with Connection(served.server.address, receive_buffer=2048) as unread:
        ending(served, path, unread)
        assert open_connections(served) == 2
        wait_until(lambda: open_connections(served) == 1, "the server to give up")
    assert "Traceback" not in served.server.log()


@pytest.mark.parametrize("ending", [closed, kept_open, half_closed], ids=lambda each: each.__name__)
def test_a_client_that_reads_slowly_gets_all(served: Tus, path: str, ending: Ending) -> None:
    with Connection(served.server.address, receive_buffer=2048) as slow:
        ending(served, path, slow)
        began = time.monotonic()
        data = bytearray()
        while piece := slow.sock.recv(2000):
            data += piece
            if len(data) % (MANY * 20) == 0:
                time.sleep(0.05)
    heads = bytes(data).split(b"HTTP/1.1 200")[1:]
    assert len(heads) == MANY
    for head in heads:
        assert head.endswith(b"\r\n\r\n")
        assert head.count(b"h" * 60) == PARTS
    assert time.monotonic() - began > 5


def open_connections(tus: Tus) -> int:
    """Connections that the server has, with the one that asks."""
    page = tus.request("GET", "/metrics").text
    found = re.search(r"^tusd_connections_open (\S+)$", page, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))
