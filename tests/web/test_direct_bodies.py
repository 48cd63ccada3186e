"""Large bodies that bypass the HTTP parser: they behave like those that do not."""

from __future__ import annotations

import hashlib
import random
import re

import pytest

from tests.conftest import MakeServer
from tests.support.server import WITHOUT_DIRECT_BODIES
from tests.support.tus import Tus, checksum
from tests.support.wire import Connection

LARGE = 3_000_001
BOTH_WAYS = pytest.mark.parametrize(
    "flags", [(), ("--disable-direct-bodies",)], ids=["direct", "stream"]
)


def content(size: int = LARGE) -> bytes:
    return random.Random(size).randbytes(size)


def bodies(tus: Tus) -> dict[str, int]:
    """The numbers of direct and of parsed bodies."""
    page = tus.request("GET", "/metrics").text
    return {
        way: int(float(n))
        for way, n in re.findall(r'^tusd_bodies_total{way="(\w+)"} (\S+)', page, re.MULTILINE)
    }


def patch(connection: Connection, tus: Tus, path: str, offset: int, data: bytes) -> int:
    """Status of a PATCH on a connection that stays open."""
    pairs = {**tus.patch_headers(offset), "Content-Length": str(len(data))}
    connection.send_head("PATCH", path, list(pairs.items()))
    connection.send(data)
    return connection.read_response("PATCH").status


@pytest.mark.skipif(WITHOUT_DIRECT_BODIES, reason="this run takes the other way")
def test_large_bodies_go_past_the_parser_and_small_ones_do_not(make_server: MakeServer) -> None:
    tus = Tus(make_server())
    data = content()
    assert tus.stored(tus.finished(data)) == data
    assert bodies(tus) == {"direct": 1, "stream": 0}
    tus.finished(b"small")
    assert bodies(tus) == {"direct": 1, "stream": 1}


def test_the_way_past_the_parser_can_be_switched_off(make_server: MakeServer) -> None:
    tus = Tus(make_server("--disable-direct-bodies"))
    data = content()
    assert tus.stored(tus.finished(data)) == data
    assert bodies(tus) == {"direct": 0, "stream": 1}


@BOTH_WAYS
def test_requests_follow_each_other_on_one_connection(
    make_server: MakeServer, flags: tuple[str, ...]
) -> None:
    tus = Tus(make_server(*flags))
    data = content()
    path = tus.new(len(data))
    with tus.connect() as connection:
        for offset in range(0, len(data), 700_000):
            assert patch(connection, tus, path, offset, data[offset : offset + 700_000]) == 204
            assert connection.request("HEAD", path).status == 200
    assert hashlib.sha256(tus.stored(path)).digest() == hashlib.sha256(data).digest()


@BOTH_WAYS
def test_requests_of_every_size_follow_a_large_body(
    make_server: MakeServer, flags: tuple[str, ...]
) -> None:
    """Heads and bodies that do not come in with one read, as well as those that do."""
    tus = Tus(make_server(*flags))
    data = content()
    path = tus.new(len(data))
    with tus.connect() as connection:
        offset = 0
        for size in (200_000, 100, 65_536, 20_000, 300_000, 65_535, 1_000_000):
            assert patch(connection, tus, path, offset, data[offset : offset + size]) == 204
            offset += size
            response = connection.request("HEAD", path, {"X-Padding": "x" * 40_000})
            assert response["Upload-Offset"] == str(offset)
        assert connection.request("HEAD", path, {"X-Padding": "x" * 70_000}).status == 431
    assert tus.stored(path) == data[:offset]


@BOTH_WAYS
def test_a_request_that_is_sent_right_behind_the_body_is_answered(
    make_server: MakeServer, flags: tuple[str, ...]
) -> None:
    tus = Tus(make_server(*flags))
    data = content(1_000_000)
    path = tus.new(len(data))
    pairs = {**tus.patch_headers(0), "Content-Length": str(len(data))}
    head = "".join(f"{name}: {value}\r\n" for name, value in pairs.items())
    first = f"PATCH {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode()
    second = f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with tus.connect() as connection:
        connection.send(first + data + second)
        assert connection.read_response("PATCH").status == 204
        assert connection.read_response("HEAD")["Upload-Offset"] == str(len(data))
    assert tus.stored(path) == data


@BOTH_WAYS
def test_T11_a_cut_in_the_middle_keeps_every_byte(
    make_server: MakeServer, flags: tuple[str, ...]
) -> None:
    tus = Tus(make_server(*flags))
    data = content()
    path = tus.new(len(data))
    offset = 0
    for step in (1, 64 * 1024, 200_000, 1_048_577):
        with tus.begin_patch(path, offset, len(data) - offset, data[offset : offset + step]) as cut:
            cut.connection.half_close()
            assert cut.connection.ended()
        offset += step
        assert tus.offset(path) == offset
    assert tus.stored(path) == data[:offset]


@BOTH_WAYS
def test_T26_a_wrong_checksum_takes_the_whole_chunk_back(
    make_server: MakeServer, flags: tuple[str, ...]
) -> None:
    tus = Tus(make_server(*flags))
    data = content()
    path = tus.new(len(data))
    wrong = {"Upload-Checksum": checksum(b"something else", "sha256")}
    assert tus.patch(path, 0, data, wrong).status == 460
    assert tus.offset(path) == 0
    right = {"Upload-Checksum": checksum(data, "sha256")}
    assert tus.patch(path, 0, data, right).status == 204
    assert tus.stored(path) == data


@BOTH_WAYS
def test_nobody_waits_for_a_body_that_does_not_come(
    make_server: MakeServer, flags: tuple[str, ...]
) -> None:
    tus = Tus(make_server("--network-timeout", "3s", *flags))
    path = tus.new(LARGE)
    with tus.begin_patch(path, 0, LARGE, b"x" * 300_000) as stalled:
        assert stalled.response().code == "ERR_READ_TIMEOUT"
    assert tus.offset(path) == 300_000


@BOTH_WAYS
def test_a_client_that_waits_for_100_gets_it_once_the_upload_is_taken(
    make_server: MakeServer, flags: tuple[str, ...]
) -> None:
    tus = Tus(make_server(*flags))
    data = content()
    path = tus.new(len(data))
    pairs = {**tus.patch_headers(0), "Content-Length": str(len(data)), "Expect": "100-continue"}
    with tus.connect() as connection:
        connection.send_head("PATCH", path, list(pairs.items()))
        assert connection.read_any("PATCH").status == 100
        connection.send(data)
        assert connection.read_response("PATCH").status == 204
    assert tus.stored(path) == data


def test_more_than_the_upload_has_room_for_is_refused_before_a_byte(
    make_server: MakeServer,
) -> None:
    tus = Tus(make_server())
    path = tus.new(LARGE)
    with tus.begin_patch(path, 0, LARGE + 1, b"x" * 100_000) as too_much:
        assert too_much.response().code == "ERR_UPLOAD_SIZE_EXCEEDED"
    assert tus.stored(path) == b""
