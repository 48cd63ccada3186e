"""Slow, greedy and malicious clients: their responses, and that other clients are not affected."""

from __future__ import annotations

import contextlib
import resource
import threading
import time

import pytest

from tests.conftest import MakeServer
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.server import ServerProcess
from tests.support.tus import OCTETS, Tus, checksum, id_of, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection, ConnectionEnded, Response, chunk, head_bytes

BODY = bytes(range(256)) * 8_000  # 2 MB
GIGABYTE = 1 << 30
IMPATIENT = ("--network-timeout", "3s")
"""Time enough for a test that was stalled itself to send what it has to."""
UNHURRIED = ("--network-timeout", "10m")
"""The first of many connections waits for the last, however long that one takes to come."""


# -- idle --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [0, 5, 1_000_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_that_stops_coming_is_ended_and_its_bytes_are_kept(
    make_server: MakeServer, framing: str, sent: int
) -> None:
    tus = Tus(make_server(*IMPATIENT))
    path = tus.new(len(BODY))
    length = len(BODY) if framing == "length" else None
    with tus.begin_patch(path, 0, length, BODY[:sent]) as patch:
        response = patch.response()
        assert (response.status, response.code) == (503, "ERR_READ_TIMEOUT")
        assert response["Connection"].lower() == "close"
        assert response["Tus-Resumable"] == "1.0.0"
        assert patch.connection.ended()
    assert tus.offset(path) == sent
    assert tus.patch(path, sent, BODY[sent:]).status == 204
    assert tus.stored(path) == BODY


def test_a_verified_chunk_that_stops_coming_is_discarded(make_server: MakeServer) -> None:
    tus = Tus(make_server(*IMPATIENT))
    path = tus.new(len(BODY))
    headers = {"Upload-Checksum": checksum(BODY)}
    with tus.begin_patch(path, 0, len(BODY), BODY[:1000], headers) as patch:
        assert patch.response().status == 503
    assert tus.offset(path) == 0
    assert tus.stored(path) == b""


def test_a_body_that_comes_slowly_is_not_ended(make_server: MakeServer) -> None:
    tus = Tus(make_server(*IMPATIENT))
    path = tus.new(800)
    with FaultProxy(tus.server.address, Plan(up=Way(rate=200))) as proxy:
        with Connection(proxy.address) as connection:
            began = time.monotonic()
            response = connection.request("PATCH", path, tus.patch_headers(0), b"x" * 800)
        assert response.status == 204
        # Longer than the time-out: it is a time without a byte, not a time for the body.
        assert time.monotonic() - began > 4.0


def test_an_idle_connection_is_closed(make_server: MakeServer) -> None:
    tus = Tus(make_server("--keep-alive-timeout", "200ms"))
    with tus.connect() as connection:
        assert connection.request("OPTIONS", tus.collection).status == 204
        assert connection.ended()


def test_a_connection_that_never_asks_anything_is_closed(make_server: MakeServer) -> None:
    tus = Tus(make_server("--network-timeout", "300ms", "--keep-alive-timeout", "300ms"))
    with tus.connect() as connection:
        assert connection.ended()


@pytest.mark.parametrize(
    "begun", [b"P", b"PATCH /files/", b"HEAD /files/x HTTP/1.1\r\nHost: a\r\n"]
)
def test_a_head_that_stops_coming_is_ended(make_server: MakeServer, begun: bytes) -> None:
    tus = Tus(make_server(*IMPATIENT))
    with tus.connect() as connection:
        connection.send(begun)
        answer = connection.read_to_end()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")


def test_a_head_that_trickles_for_ever_is_ended(make_server: MakeServer) -> None:
    tus = Tus(make_server("--network-timeout", "500ms"))
    # It would take 100 seconds, and we wait for 40.
    request = head_bytes("HEAD", tus.collection, {"X-Padding": "x" * 10_000}, "localhost")
    with (
        FaultProxy(tus.server.address, Plan(up=Way(rate=100))) as proxy,
        Connection(proxy.address, timeout=40) as connection,
    ):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(request)
        with contextlib.suppress(ConnectionResetError):
            connection.read_to_end()


# -- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Padding": "x" * 900}, 404),
        ({"X-Padding": "x" * 3000}, 431),
        ({f"X-{number}": "x" for number in range(500)}, 431),
    ],
)
def test_headers_have_a_limit(
    make_server: MakeServer, headers: dict[str, str], status: int
) -> None:
    tus = Tus(make_server("--max-header-size", "2KiB"))
    response = tus.head(tus.collection + "0" * 32, headers)
    assert response.status == status
    assert response["Tus-Resumable"] == "1.0.0"
    if status == 431:
        assert response["Connection"].lower() == "close"


@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_a_head_without_end_is_refused_while_it_comes(tus: Tus, method: str) -> None:
    with tus.connect() as connection:
        connection.send(head_bytes(method, tus.collection, {}, "localhost")[:-2])
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for number in range(10_000):
                connection.send(f"X-{number}: {'x' * 1000}\r\n".encode())
        assert connection.read_response(method).status == 431


def test_a_request_line_without_end_is_refused_while_it_comes(tus: Tus) -> None:
    with tus.connect() as connection:
        connection.send(b"GET /files/")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(10_000):
                connection.send(b"x" * 1000)
        assert connection.read_response().status in {414, 431}


def test_the_metadata_of_a_whole_header_is_accepted(tus: Tus) -> None:
    value = "note " + "YWFh" * 4_000
    path = tus.new(5, headers={"Upload-Metadata": value})
    assert tus.head(path)["Upload-Metadata"] == value


def test_the_trailer_section_has_a_limit(tus: Tus) -> None:
    path = tus.new(5)
    with tus.begin_patch(path, 0, None, b"hello") as patch:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            patch.connection.send(b"0\r\n")
            for number in range(10_000):
                patch.connection.send(f"X-{number}: {'x' * 1000}\r\n".encode())
        with contextlib.suppress(ConnectionEnded, ConnectionResetError):
            assert 400 <= patch.response().status < 500
    assert tus.options().status == 204


def test_connections_have_a_limit(make_server: MakeServer) -> None:
    tus = Tus(make_server("--max-connections", "5"))
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(tus.connect()) for _ in range(5)]
        for connection in connections:
            assert connection.request("OPTIONS", tus.collection).status == 204
        with tus.connect() as refused:
            response = refused.request("OPTIONS", tus.collection)
            assert response.status == 503
            assert response["Retry-After"].isdigit()
            assert response["Connection"].lower() == "close"
            assert refused.ended()
        assert connections[0].request("OPTIONS", tus.collection).status == 204
        connections[0].close()
        wait_until(lambda: tus.options().status == 204, "room for another connection")


# -- bodies that nobody wants ------------------------------------------------------------------


def refused_requests(tus: Tus) -> dict[str, tuple[str, str, dict[str, str], int]]:
    """Requests with a body of a gigabyte that are refused by their header fields."""
    path = tus.new(GIGABYTE)
    unknown = tus.collection + "0" * 32
    length = {"Content-Length": str(GIGABYTE)}
    creation = {"Tus-Resumable": "1.0.0", "Content-Type": OCTETS, **length}
    return {
        "another offset": ("PATCH", path, tus.patch_headers(5, length), 409),
        "another version": (
            "PATCH",
            path,
            tus.patch_headers(0, {**length, "Tus-Resumable": "0"}),
            412,
        ),
        "another media type": (
            "PATCH",
            path,
            tus.patch_headers(0, {**length, "Content-Type": "a/b"}),
            415,
        ),
        "unknown upload": ("PATCH", unknown, tus.patch_headers(0, length), 404),
        "bad creation": ("POST", tus.collection, creation, 400),
        "unknown method": ("PUT", path, length, 405),
        "elsewhere": ("POST", "/nowhere", length, 404),
        "chunked": (
            "PATCH",
            path,
            tus.patch_headers(5, {"Transfer-Encoding": "chunked"}),
            409,
        ),
    }


REFUSED = [
    "another offset",
    "another version",
    "another media type",
    "unknown upload",
    "bad creation",
    "unknown method",
    "elsewhere",
    "chunked",
]


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_can_be_read_although_the_body_is_on_its_way(tus: Tus, case: str) -> None:
    method, path, headers, status = refused_requests(tus)[case]
    before = {name: tus.server.data_file(name).stat().st_size for name in tus.data_files()}
    with tus.connect() as connection:
        connection.send_head(method, path, headers)
        # More than the server has any reason to read, and less than sockets hold: a reset would
        # take the response from us.
        body = chunk(BODY[:500_000]) if case == "chunked" else BODY[:500_000]
        connection.send(body)
        response = connection.read_response(method)
        assert response.status == status
        assert response["Connection"].lower() == "close"
        assert connection.ended()
    assert {name: tus.server.data_file(name).stat().st_size for name in tus.data_files()} == before


@pytest.mark.parametrize("case", ["another offset", "bad creation", "elsewhere", "chunked"])
def test_a_refusal_does_not_swallow_a_gigabyte(tus: Tus, case: str) -> None:
    method, path, headers, status = refused_requests(tus)[case]
    block = bytes(1 << 20)
    sent = 0
    with tus.connect() as connection:
        connection.send_head(method, path, headers)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < GIGABYTE:
                connection.send(chunk(block) if case == "chunked" else block)
                sent += len(block)
        assert sent < 64 << 20
        with contextlib.suppress(ConnectionEnded, ConnectionResetError):
            assert connection.read_response(method).status == status


def test_a_patient_client_reads_the_refusal_of_a_gigabyte(tus: Tus) -> None:
    method, path, headers, status = refused_requests(tus)["another offset"]
    answers: list[Response] = []
    with tus.connect() as connection:
        connection.send_head(method, path, headers)
        reader = threading.Thread(target=lambda: answers.append(connection.read_response(method)))
        reader.start()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(64):
                connection.send(bytes(1 << 20))
        reader.join()
    assert [answer.status for answer in answers] == [status]


def test_a_small_refused_body_costs_no_connection(tus: Tus) -> None:
    path = tus.new(10)
    with tus.connect() as connection:
        assert tus.patch(path, 5, b"hello", on=connection).status == 409
        assert tus.patch(path, 0, b"hello", on=connection).status == 204


def test_a_body_on_a_get_is_no_request(tus: Tus) -> None:
    path, victim = tus.finished(b"hello"), tus.new(5)
    smuggled = head_bytes("DELETE", victim, {"Tus-Resumable": "1.0.0"}, "localhost")
    with tus.connect() as connection:
        response = connection.request("GET", path, {}, smuggled)
        assert response.status == 200
        connection.half_close()
        with contextlib.suppress(ConnectionResetError):
            connection.read_to_end()
    assert tus.offset(victim) == 0


# -- smuggling ---------------------------------------------------------------------------------

DELETE = "{delete}"
"""Stands for a whole DELETE request of the victim in the shapes below."""

SHAPES = {
    "length and chunked": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{delete}",
    "chunked and length": "Transfer-Encoding: chunked\r\nContent-Length: 500\r\n\r\n0\r\n\r\n{delete}",
    "two lengths": "Content-Length: 0\r\nContent-Length: 500\r\n\r\n{delete}",
    "two lengths, other order": "Content-Length: 500\r\nContent-Length: 0\r\n\r\n{delete}",
    "list of lengths": "Content-Length: 0, 500\r\n\r\n{delete}",
    "signed length": "Content-Length: +0\r\n\r\n{delete}",
    "negative length": "Content-Length: -1\r\n\r\n{delete}",
    "hexadecimal length": "Content-Length: 0x0\r\n\r\n{delete}",
    "length with a space": "Content-Length: 0 0\r\n\r\n{delete}",
    "length that overflows": "Content-Length: 18446744073709551616\r\n\r\n{delete}",
    "space before the colon": "Content-Length : 0\r\n\r\n{delete}",
    "unknown coding": "Transfer-Encoding: xchunked\r\n\r\n{delete}",
    "chunked not last": "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{delete}",
    "chunked twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n{delete}",
    "vertical tab": "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{delete}",
    "folded": "Transfer-Encoding:\r\n chunked\r\nContent-Length: 0\r\n\r\n{delete}",
    "bad chunk size": "Transfer-Encoding: chunked\r\n\r\nxyz\r\n{delete}",
    "negative chunk size": "Transfer-Encoding: chunked\r\n\r\n-1\r\n{delete}",
    "prefixed chunk size": "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n{delete}",
    "chunk size that overflows": "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n{delete}",
    "chunk without its end": "Transfer-Encoding: chunked\r\n\r\n1\r\nxx0\r\n\r\n{delete}",
    "line feed in a name": "X\n: y\r\nContent-Length: 0\r\n\r\n{delete}",
    "carriage return in a value": "X: a\rb\r\nContent-Length: 0\r\n\r\n{delete}",
    "nul in a value": "X: a\x00b\r\nContent-Length: 0\r\n\r\n{delete}",
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_ambiguous_framing_is_refused_and_smuggles_nothing(tus: Tus, shape: str) -> None:
    path, victim = tus.new(1000), tus.new(5)
    smuggled = head_bytes("DELETE", victim, {"Tus-Resumable": "1.0.0"}, "localhost").decode()
    head = head_bytes("PATCH", path, tus.patch_headers(0), "localhost")[:-2]
    with tus.connect() as connection:
        connection.send(head + shape.replace(DELETE, smuggled).encode("latin-1"))
        connection.half_close()
        answer = connection.read_to_end()
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert tus.offset(victim) == 0
    # At most what stood in a whole chunk before the framing broke: what arrived is kept.
    assert tus.stored(path) in {b"", b"x"}


def test_length_and_chunked_together_are_answered_with_400(tus: Tus) -> None:
    path = tus.new(5)
    both = {"Content-Length": "5", "Transfer-Encoding": "chunked"}
    with tus.connect() as connection:
        connection.send_head("PATCH", path, tus.patch_headers(0, both))
        connection.send(b"0\r\n\r\n")
        response = connection.read_response("PATCH")
        assert response.status == 400
        assert connection.ended()
    assert tus.stored(path) == b""


def test_T1_what_is_no_http_is_answered_with_400_and_the_version(tus: Tus) -> None:
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
    ):
        with tus.connect() as connection:
            connection.send(garbage)
            response = connection.read_response()
            assert (response.status, response["Tus-Resumable"]) == (400, "1.0.0")
            assert response["Connection"].lower() == "close"
            assert connection.ended()


# -- methods -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    ["PUT", "TRACE", "PROPFIND", "get", "Patch", "FOO", "M" * 5000, "PRI", "CONNECT", "G\u00c9T"],
)
@pytest.mark.parametrize("where", ["collection", "upload", "root", "asterisk"])
def test_absurd_methods_are_refused(tus: Tus, method: str, where: str) -> None:
    path = {
        "collection": tus.collection,
        "upload": tus.new(5),
        "root": "/",
        "asterisk": "*",
    }[where]
    with tus.connect() as connection:
        connection.send_head(method, path)
        connection.half_close()
        answer = connection.read_to_end()
    status = int(answer.split(b" ")[1]) if answer else 400
    assert 400 <= status < 500 or status == 501
    assert tus.options().status == 204


def test_405_tells_what_is_allowed(tus: Tus) -> None:
    on_upload = tus.request("PUT", tus.new(5), {"Content-Length": "0"})
    assert on_upload.status == 405
    assert {"HEAD", "PATCH", "DELETE", "GET", "OPTIONS"} <= set(on_upload.items("Allow"))
    on_collection = tus.request("PUT", tus.collection, {"Content-Length": "0"})
    assert on_collection.status == 405
    assert {"POST", "OPTIONS"} <= set(on_collection.items("Allow"))


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9.9", "HTTP/1.1x"])
def test_other_versions_of_http_do_no_harm(tus: Tus, version: str) -> None:
    path = tus.finished(b"hello")
    with tus.connect() as connection:
        connection.send(f"HEAD {path} {version}\r\nHost: localhost\r\n\r\n".encode())
        connection.half_close()
        answer = connection.read_to_end()
    assert not answer.startswith(b"HTTP/1.1 5") or answer.startswith(b"HTTP/1.1 505")
    assert tus.offset(path) == 5


def test_an_upgrade_is_ignored(tus: Tus) -> None:
    path = tus.finished(b"hello")
    for upgrade in ("websocket", "h2c"):
        headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": upgrade}
        assert tus.head(path, headers)["Upload-Offset"] == "5"


@pytest.mark.parametrize("body", [b"hello", BODY])
def test_an_upgrade_with_a_body_loses_no_byte_in_silence(tus: Tus, body: bytes) -> None:
    path = tus.new(len(body))
    headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    response = tus.patch(path, 0, body, headers)
    if response.status == 204:
        assert tus.stored(path) == body
    else:
        assert 400 <= response.status < 500
        assert tus.stored(path) == b""


# -- many --------------------------------------------------------------------------------------

TRICKLING = 1000


@pytest.fixture
def many_files() -> None:
    """Raise the limit of descriptors as far as possible, for the tests and their servers."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.mark.usefixtures("many_files")
def test_a_thousand_trickling_connections_take_less_than_20_kib_each(
    make_server: MakeServer,
) -> None:
    server = make_server(*UNHURRIED)
    tus = Tus(server)
    with tus.connect() as connection:
        paths = [path_of(tus.create(100_000, on=connection)["Location"]) for _ in range(TRICKLING)]
    warm_up(tus)
    before = server.memory()
    with contextlib.ExitStack() as stack:
        patches = [stack.enter_context(tus.begin_patch(path, 0, 100_000)) for path in paths]
        for _ in range(3):
            for patch in patches:
                patch.send(b"x" * 100)
        for patch in patches:
            patch.wait_stored()
        each = (server.memory() - before) / TRICKLING
        assert each < 20 * 1024, f"{each / 1024:.1f} KiB each"
        assert tus.options().status == 204
    for path in paths[:: TRICKLING // 10]:
        assert tus.offset(path) == 300


@pytest.mark.usefixtures("many_files")
def test_what_a_connection_sent_is_not_held_while_it_waits(make_server: MakeServer) -> None:
    server = make_server(*UNHURRIED)
    tus = Tus(server)
    paths = [tus.new(1_000_000) for _ in range(200)]
    warm_up(tus)
    before = server.memory()
    with contextlib.ExitStack() as stack:
        patches = [stack.enter_context(tus.begin_patch(path, 0, 1_000_000)) for path in paths]
        for patch in patches:
            patch.send(BODY[:200_000])
        for patch in patches:
            patch.wait_stored()
        each = (server.memory() - before) / len(patches)
        assert each < 50 * 1024, f"{each / 1024:.1f} KiB each"


def warm_up(tus: Tus) -> None:
    """Requests of every kind, so that what is measured is connections, not first uses."""
    for _ in range(20):
        path = tus.finished(b"hello" * 100)
        tus.get(path)
        with tus.begin_patch(tus.new(10), 0, 10, b"x") as patch:
            patch.wait_stored()
        tus.delete(path)


def test_memory_does_not_grow_with_a_body(make_server: MakeServer) -> None:
    server = make_server("--durability", "none")
    tus = Tus(server)
    warm_up(tus)
    path = tus.new(256 << 20)
    block = bytes(1 << 20)
    before = server.memory()
    with tus.begin_patch(path, 0, 256 << 20) as patch:
        for _ in range(256):
            patch.send(block)
        assert patch.response().status == 204
    assert server.memory() - before < 16 << 20
    tus.delete(path)


def test_a_server_that_was_flooded_is_well_afterwards(make_server: MakeServer) -> None:
    server: ServerProcess = make_server()
    tus = Tus(server)
    path = tus.new(100)
    sockets = server.open_sockets()
    for number in range(200):
        connection = tus.connect()
        connection.send(b"PATCH /files/"[: number % 13])
        connection.reset() if number % 2 else connection.close()
    wait_until(lambda: server.open_sockets() <= sockets, "the connections' end")
    assert tus.patch(path, 0, b"x" * 100).status == 204
    assert id_of(path) in tus.data_files()
