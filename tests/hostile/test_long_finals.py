"""Finals of many parts: as many absolute URLs as `--max-concat-parts` allows, with bounded memory for anyone else."""

from __future__ import annotations

import select
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.server import ServerProcess
from tests.support.tus import Tus, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection, head_bytes
from tusd_py.settings.model import Settings
from tusd_py.web.http.heads import LongHeads

DEFAULT_PARTS = int(Settings.model_fields["max_concat_parts"].default)
HOST = "uploads-of-a-long-name.department.example.org"
UNHURRIED = ("--network-timeout", "10m")


def final_of(urls: list[str]) -> dict[str, str]:
    return {
        "Tus-Resumable": "1.0.0",
        "Content-Length": "0",
        "Upload-Concat": "final;" + " ".join(urls),
    }


@pytest.mark.parametrize("behind", ["", "/app"])
def test_as_many_absolute_urls_as_are_allowed_by_default(tus: Tus, behind: str) -> None:
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    url = f"https://{HOST}:8443{behind}{part}"
    created = tus.create(headers=final_of([url] * DEFAULT_PARTS))
    assert created.status == 201
    assert tus.get(path_of(created["Location"])).body == b"x" * DEFAULT_PARTS


def test_one_more_is_refused_with_the_limit(tus: Tus) -> None:
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    refused = tus.create(headers=final_of([part] * (DEFAULT_PARTS + 1)))
    assert (refused.status, refused.code) == (400, "ERR_INVALID_CONCAT")
    assert str(DEFAULT_PARTS) in refused.text


@pytest.mark.parametrize("parts", [1, 40, 2000])
def test_the_bound_follows_the_setting(make_server: MakeServer, parts: int) -> None:
    server = make_server("--max-concat-parts", str(parts), "--max-header-size", "2KiB")
    tus = Tus(server)
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    url = f"https://{HOST}:8443/app{part}"
    assert tus.create(headers=final_of([url] * parts)).status == 201
    assert tus.create(headers=final_of([url] * (parts + 1))).status in (400, 431)
    padded = final_of([url] * parts) | {"X-Padding": "x" * 3000}
    assert tus.create(headers=padded).status == 431


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("POST", "X-Padding"),
        ("POST", "Upload-Metadata"),
        ("PATCH", "Upload-Concat"),
        ("HEAD", "Upload-Concat"),
        ("GET", "Upload-Concat"),
    ],
)
def test_other_long_heads_are_refused(tus: Tus, method: str, name: str) -> None:
    with tus.connect() as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(
                head_bytes(method, tus.collection, {name: "x" * 1_000_000}, "localhost")
            )
        refused = connection.read_response(method)
    assert refused.status == 431


def test_a_list_without_end_is_refused(tus: Tus) -> None:
    with tus.connect() as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(b"POST /files/ HTTP/1.1\r\nHost: a\r\nUpload-Concat: final;")
            for _ in range(64):
                connection.send(b"/files/x " * 7000)
        assert connection.read_response("POST").status == 431


@pytest.mark.parametrize("first", ["", "Upload-Concat: final;/a\r\n"])
def test_thousands_of_lists_are_refused_before_they_are_counted(
    make_server: MakeServer, first: str
) -> None:
    """Each of them would be counted with all before it, once the other fields take what they may: minutes for 1 MiB."""
    server = make_server(*UNHURRIED)
    fields = f"Host: a\r\n{first}" + "x: y\r\n" * 10_800
    lists = "Upload-Concat: f\r\n" * 20_000
    before = server.processor_seconds()
    with Connection(server.address) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(f"POST /files/ HTTP/1.1\r\n{fields}{lists}\r\n".encode())
        assert connection.read_response("POST").status == 431
    assert server.processor_seconds() - before < 2


def test_strangers_have_a_few_long_heads_together(make_server: MakeServer) -> None:
    """However many begin one, and they are free again when these have gone."""
    server = make_server(*UNHURRIED)
    tus = Tus(server)
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    whole = final_of([part] * DEFAULT_PARTS)
    begun = head_bytes("POST", tus.collection, whole, "localhost")[:300_000]
    before = server.memory()
    with ExitStack() as open_ones:
        # No more, as those that are accepted have only some seconds.
        for _ in range(60):
            connection = open_ones.enter_context(Connection(server.address))
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.send(begun)
        refused = tus.create(headers=whole)
        assert (refused.status, refused.code) == (503, "ERR_UNAVAILABLE")
        assert refused["Retry-After"]
        # An ordinary final is joined beside them.
        assert tus.create(headers=final_of([part] * 100)).status == 201
        assert server.memory() - before < 64 * 1024**2
    # The server learns that they have gone when it reads their sockets.
    wait_until(lambda: tus.create(headers=whole).status == 201, "a long head is taken again")


def test_a_part_that_is_spelled_in_thousands_of_ways_does_not_stop_the_server(tus: Tus) -> None:
    """Each of them may be the URL of eight uploads; all were looked up at one go."""
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    around = "/files/a" * 6
    urls = [f"/files/{number:x}{around}{part}" for number in range(9_990)]
    created = tus.create(headers=final_of(urls))
    assert created.status == 201
    assert tus.get(path_of(created["Location"])).body == b"x" * len(urls)
    # As the last one is of no upload, the server does nothing but look them up.
    refused = head_bytes("POST", tus.collection, final_of([*urls, "/files/x"]), "localhost")

    def answered_during_look_ups() -> int:
        answered = 0
        with tus.connect() as connection:
            connection.send(refused[:-1])
            # Others are served while it is read, too.
            wait_until(connection.all_is_read, "the server to read the head")
            connection.send(refused[-1:])
            while not select.select([connection.sock], [], [], 0)[0]:
                assert tus.options().status == 204
                answered += 1
            assert connection.read_response("POST").status == 404
        return answered

    # At one go they let one or two through. Where other programs keep us from asking, one request says nothing.
    wait_until(lambda: answered_during_look_ups() > 10, "answers during look-ups")


def test_look_ups_of_parts_are_bounded(make_server: MakeServer, tmp_path: Path) -> None:
    """Ids with slashes, as hooks may choose them, have parts of themselves as further readings."""
    hook = tmp_path / "ids.py"
    hook.write_text(
        "from tusd_py import Changes\n"
        "def pre_create(event):\n"
        "    if event.upload.is_partial:\n"
        "        return Changes(id=event.request.headers['x-id'])\n"
    )
    tus = Tus(make_server("--hook", str(hook)))
    parts = {
        "/files/".join(f"{letter}{number}" for letter in "abcdefg"): str(number % 10).encode()
        for number in range(20)
    }
    for part_id, data in parts.items():
        tus.finished(data, {"Upload-Concat": "partial", "X-Id": part_id})
    plain = tus.create(headers=final_of([f"/files/{each}" for each in parts]))
    assert tus.get(path_of(plain["Location"])).body == b"".join(parts.values())
    behind = [f"/files/app/files/{each}" for each in parts]
    assert tus.create(headers=final_of(behind[:10])).status == 201
    refused = tus.create(headers=final_of(behind))
    assert (refused.status, refused.code) == (400, "ERR_INVALID_CONCAT")


BEHIND = ("--behind-proxy", "127.0.0.1")


def begin_long_heads(open_ones: ExitStack, server: ServerProcess, tail: bytes = b"") -> None:
    """More heads than there is place for, all incomplete, from the address of a proxy."""
    begun = b"POST /files/ HTTP/1.1\r\nHost: x\r\nUpload-Concat: final;" + b"x" * 70_000 + tail
    for _ in range(30):
        connection = open_ones.enter_context(Connection(server.address))
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(begun)


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"\r\nTus-Resumable: 1.0.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\r\nUpload-Complete: ?1\r\nUpload-Draft-Interop-Version: 9\r\nContent-Length: 9\r\n\r\nx",
    ],
    ids=["head", "chunked body", "body"],
)
def test_those_that_do_not_become_complete_keep_others_out_for_seconds(
    make_server: MakeServer, tail: bytes
) -> None:
    """Not for the network time-out, as they can be begun again."""
    server = make_server(*UNHURRIED, *BEHIND)
    tus = Tus(server)
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    whole = final_of([part] * DEFAULT_PARTS)
    with ExitStack() as open_ones:
        begin_long_heads(open_ones, server, tail)
        wait_until(lambda: tus.create(headers=whole).status == 201, "a place", 30)


def test_one_behind_a_request_that_is_not_answered_is_refused(make_server: MakeServer) -> None:
    """It would keep its place for as long as the client reads the response to the one before."""
    server = make_server(*UNHURRIED, *BEHIND)
    tus = Tus(server)
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    whole = final_of([part] * DEFAULT_PARTS)
    download = head_bytes("GET", tus.finished(bytes(20_000_000)), {}, "localhost")
    with ExitStack() as open_ones:
        for _ in range(30):
            connection = Connection(server.address, receive_buffer=4096)
            open_ones.enter_context(connection)
            connection.send(download)
            assert connection.sock.recv(10) == b"HTTP/1.1 2"
            connection.send(head_bytes("POST", tus.collection, whole, "localhost")[:70_000])
        assert tus.create(headers=whole).status == 201


def test_a_slow_line_is_given_time(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    head = head_bytes("POST", tus.collection, final_of([part] * DEFAULT_PARTS), "localhost")
    with (
        FaultProxy(server.address, Plan(up=Way(rate=50_000))) as proxy,
        Connection(proxy.address) as connection,
    ):
        began = time.monotonic()
        connection.send(head)
        assert connection.read_response("POST").status == 201
    assert time.monotonic() - began > 6


def test_one_address_does_not_take_all_places(make_server: MakeServer) -> None:
    server = make_server(*UNHURRIED)
    tus = Tus(server)
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    whole = final_of([part] * DEFAULT_PARTS)
    with ExitStack() as open_ones:
        begin_long_heads(open_ones, server)
        assert tus.create(headers=whole).status == 503
        with socket.socket() as other:
            other.bind(("127.0.0.2", 0))
            other.connect(server.address)
            other.sendall(head_bytes("POST", tus.collection, whole, "localhost"))
            assert other.recv(13) == b"HTTP/1.1 201 "


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_addresses_that_one_client_may_have(first: str, second: str, together: bool) -> None:
    places = LongHeads(8 * 1024**2, lambda _address: False)
    assert places.try_acquire(first, 0) is not None
    assert (places.try_acquire(second, 0) is None) is together


def test_a_place_that_was_given_back_is_free() -> None:
    places = LongHeads(8 * 1024**2, lambda address: address == "proxy")
    held = [places.try_acquire("proxy", 0) for _ in range(3)]
    last = places.try_acquire("192.0.2.1", 0)
    assert last is not None
    assert places.try_acquire("192.0.2.2", 0) is None
    last.release()
    assert places.try_acquire("192.0.2.1", 0) is not None
    assert all(held)
