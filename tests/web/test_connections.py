"""A connection: pipelined requests, half-closed clients, upgrades, malformed heads, and its end."""

from __future__ import annotations

import contextlib
import random
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.events import Recorder
from tests.support.server import ServerProcess
from tests.support.tus import OCTETS, Tus, id_of, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection, chunk, head_bytes, last_chunk

BOTH_WAYS = pytest.mark.parametrize(
    "flags", [(), ("--disable-direct-bodies",)], ids=["direct", "stream"]
)
ORIGIN = "https://app.example.com"


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


@pytest.fixture
def holding(make_server: MakeServer, recorder: Recorder) -> Tus:
    """A server whose pre-finish hooks wait for the test."""
    tus = Tus(make_server(*recorder.flags, env=recorder.env))
    recorder.hold_pre_finish()
    return tus


def patch_bytes(tus: Tus, path: str, data: bytes, extra: dict[str, str] | None = None) -> bytes:
    """A whole PATCH at offset 0."""
    headers = tus.patch_headers(0, {"Content-Length": str(len(data)), **(extra or {})})
    return head_bytes("PATCH", path, headers, "localhost") + data


def options_bytes(tus: Tus) -> bytes:
    return head_bytes("OPTIONS", tus.collection, {}, "localhost")


def creation_bytes(tus: Tus, data: bytes) -> bytes:
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": str(len(data)),
        "Content-Type": OCTETS,
        "Content-Length": str(len(data)),
    }
    return head_bytes("POST", tus.collection, headers, "localhost") + data


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# -- pipelined requests ------------------------------------------------------------------------


class TestPipelined:
    @BOTH_WAYS
    def test_requests_are_answered_in_their_order(
        self, make_server: MakeServer, flags: tuple[str, ...]
    ) -> None:
        tus = Tus(make_server(*flags))
        bodies = [content(size) for size in (0, 1, 70_000, 5, 300_000, 65_536, 100)]
        with tus.connect() as connection:
            sender = threading.Thread(
                target=connection.send,
                args=(b"".join(creation_bytes(tus, body) + options_bytes(tus) for body in bodies),),
            )
            sender.start()
            for body in bodies:
                created = connection.read_response("POST")
                assert created.status == 201
                assert tus.stored(path_of(created["Location"])) == body
                assert connection.read_response("OPTIONS").status == 204
            sender.join()

    def test_more_than_a_few_end_the_connection_with_their_responses(
        self, make_server: MakeServer
    ) -> None:
        server = make_server()
        tus = Tus(server)
        for _ in range(20):
            tus.options()
        before = server.memory()
        with tus.connect() as connection:
            flood(connection, options_bytes(tus) * 1000, 400)
            answer = received(connection)
        assert 1 <= answer.count(b"HTTP/1.1 204 ") < 100
        assert b"connection: close" in answer.rpartition(b"HTTP/1.1 ")[2].lower()
        assert tus.options().status == 204
        assert server.memory() - before < 16 << 20

    def test_those_behind_a_slow_request_wait_outside(
        self, holding: Tus, recorder: Recorder
    ) -> None:
        path = holding.new(5)
        before = holding.server.memory()
        with holding.connect() as connection:
            connection.send(patch_bytes(holding, path, b"hello"))
            recorder.wait_for("pre-finish", id_of(path))
            sender = threading.Thread(
                target=flood, args=(connection, options_bytes(holding) * 1000, 400)
            )
            sender.start()
            assert holding.options().status == 204
            recorder.release()
            answer = received(connection)
            sender.join()
        assert answer.count(b"HTTP/1.1 204 ") < 100
        assert answer.startswith(b"HTTP/1.1 204 ")
        assert b"upload-offset: 5" in answer.partition(b"\r\n\r\n")[0].lower()
        assert holding.server.memory() - before < 16 << 20

    def test_those_that_fit_are_all_answered_behind_a_slow_one(
        self, holding: Tus, recorder: Recorder
    ) -> None:
        path = holding.new(5)
        with holding.connect() as connection:
            connection.send(patch_bytes(holding, path, b"hello") + options_bytes(holding) * 10)
            recorder.wait_for("pre-finish", id_of(path))
            recorder.release()
            assert connection.read_response("PATCH")["Upload-Offset"] == "5"
            for _ in range(10):
                assert connection.read_response("OPTIONS").status == 204
            assert connection.request("HEAD", path)["Upload-Offset"] == "5"

    @pytest.mark.parametrize(
        ("behind", "status"),
        [
            (b"garbage\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200_000, 431),
        ],
    )
    def test_a_refusal_comes_behind_the_responses_to_those_before(
        self, holding: Tus, recorder: Recorder, behind: bytes, status: int
    ) -> None:
        path = holding.new(5)
        with holding.connect() as connection:
            connection.send(patch_bytes(holding, path, b"hello") + options_bytes(holding))
            recorder.wait_for("pre-finish", id_of(path))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(behind)
            recorder.release()
            assert connection.read_response("PATCH")["Upload-Offset"] == "5"
            assert connection.read_response("OPTIONS").status == 204
            assert connection.read_response("GET").status == status
            assert connection.ended()


def flood(connection: Connection, data: bytes, times: int) -> None:
    """Sends until the server does not let us any more."""
    with contextlib.suppress(OSError):
        for _ in range(times):
            connection.send(data)


def received(connection: Connection) -> bytes:
    """All that comes before the connection ends, by a reset too."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.sock.recv(65_536):
            data += piece
    return data


# -- clients that end their sending side -------------------------------------------------------


class TestHalfClosed:
    @BOTH_WAYS
    @pytest.mark.parametrize("size", [5, 65_536, 2_000_000])
    def test_get_the_answer_that_takes_a_moment(
        self,
        make_server: MakeServer,
        recorder: Recorder,
        flags: tuple[str, ...],
        size: int,
    ) -> None:
        tus = Tus(make_server(*recorder.flags, *flags, env=recorder.env))
        recorder.hold_pre_finish()
        data = content(size)
        path = tus.new(size)
        with tus.connect() as connection:
            connection.send(patch_bytes(tus, path, data))
            connection.half_close()
            recorder.wait_for("pre-finish", id_of(path))
            # Enough for the server to learn of the end before it answers.
            assert tus.options().status == 204
            recorder.release()
            response = connection.read_response("PATCH")
            assert (response.status, response["Upload-Offset"]) == (204, str(size))
            assert connection.ended()
        assert tus.stored(path) == data

    def test_get_the_answers_to_all_pipelined_requests(
        self, holding: Tus, recorder: Recorder
    ) -> None:
        path = holding.new(5)
        with holding.connect() as connection:
            connection.send(patch_bytes(holding, path, b"hello") + options_bytes(holding) * 5)
            connection.half_close()
            recorder.wait_for("pre-finish", id_of(path))
            recorder.release()
            assert connection.read_response("PATCH").status == 204
            for _ in range(5):
                assert connection.read_response("OPTIONS").status == 204
            assert connection.ended()

    @pytest.mark.parametrize("behind_an_upload", [False, True])
    def test_get_the_whole_download(self, tus: Tus, behind_an_upload: bool) -> None:
        data = content(20_000_000)
        path = tus.finished(data)
        other = tus.new(300_000)
        with Connection(tus.server.address, receive_buffer=65_536) as connection:
            if behind_an_upload:
                connection.send(patch_bytes(tus, other, data[:300_000]))
                assert connection.read_response("PATCH").status == 204
            connection.send_head("GET", path)
            connection.half_close()
            assert connection.read_response("GET").body == data
            assert connection.ended()

    def test_a_chunked_body_that_came_to_its_end_is_answered(self, tus: Tus) -> None:
        path = tus.new(5)
        with tus.begin_patch(path, 0, None, b"hello") as patch:
            patch.connection.send(last_chunk())
            patch.connection.half_close()
            assert patch.response()["Upload-Offset"] == "5"

    @pytest.mark.parametrize("sent", [b"", b"HEAD /files/", b"HEAD / HTTP/1.1\r\nHost: a\r\n"])
    def test_nobody_waits_for_one_that_has_asked_nothing(self, tus: Tus, sent: bytes) -> None:
        with tus.connect() as connection:
            connection.send(sent)
            connection.half_close()
            assert connection.ended()

    def test_a_request_that_came_in_part_does_not_take_the_others_with_it(
        self, holding: Tus, recorder: Recorder
    ) -> None:
        path, other = holding.new(5), holding.new(100)
        with holding.connect() as connection:
            connection.send(patch_bytes(holding, path, b"hello"))
            connection.send(patch_bytes(holding, other, b"x" * 100)[:-10])
            connection.half_close()
            recorder.wait_for("pre-finish", id_of(path))
            recorder.release()
            assert connection.read_response("PATCH")["Upload-Offset"] == "5"
            connection.read_to_end()


# -- upgrades ----------------------------------------------------------------------------------

UPGRADES = {
    "h2c": {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": "h2c",
        "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA",
    },
    "websocket": {"Connection": "keep-alive, Upgrade", "Upgrade": "websocket"},
    "several": {"Connection": "upgrade", "Upgrade": "foo/2, TLS/1.0"},
}


class TestUpgradesAreIgnored:
    @BOTH_WAYS
    @pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES.keys())
    def test_and_so_are_their_effects_on_all_that_follows(
        self, make_server: MakeServer, flags: tuple[str, ...], upgrade: dict[str, str]
    ) -> None:
        tus = Tus(make_server(*flags))
        with tus.connect() as connection:
            for size in (0, 1, 5_000, 65_536, 65_537, 300_000, 2_000_000):
                data = content(size)
                for framing in ("length", "chunked"):
                    path = tus.new(size)
                    # Other requests right behind the body, in the same segment and not.
                    sent = self.patch(tus, path, data, upgrade, framing) + options_bytes(tus)
                    sender = threading.Thread(target=connection.send, args=(sent,))
                    sender.start()
                    assert connection.read_response("PATCH").status == 204
                    assert connection.read_response("OPTIONS").status == 204
                    sender.join()
                    assert connection.request("HEAD", path, upgrade).status == 200
                    assert tus.stored(path) == data

    @staticmethod
    def patch(tus: Tus, path: str, data: bytes, upgrade: dict[str, str], framing: str) -> bytes:
        if framing == "length":
            return patch_bytes(tus, path, data, upgrade)
        headers = tus.patch_headers(0, {"Transfer-Encoding": "chunked", **upgrade})
        pieces = [data[at : at + 10_000] for at in range(0, len(data), 10_000)]
        body = b"".join(chunk(piece) for piece in pieces) + last_chunk({"X-Trailer": "x"})
        return head_bytes("PATCH", path, headers, "localhost") + body

    def test_a_head_and_a_body_that_come_byte_by_byte(self, tus: Tus) -> None:
        path = tus.new(5)
        with tus.connect() as connection:
            for byte in patch_bytes(tus, path, b"hello", UPGRADES["h2c"]):
                connection.send(bytes([byte]))
            assert connection.read_response("PATCH")["Upload-Offset"] == "5"
            assert connection.request("HEAD", path)["Upload-Offset"] == "5"

    def test_a_body_that_looks_like_a_request_is_none(self, tus: Tus) -> None:
        victim = tus.new(5)
        smuggled = head_bytes("DELETE", victim, {"Tus-Resumable": "1.0.0"}, "localhost")
        path = tus.new(len(smuggled))
        with tus.connect() as connection:
            connection.send(patch_bytes(tus, path, smuggled, UPGRADES["h2c"]))
            assert connection.read_response("PATCH").status == 204
            assert connection.request("OPTIONS", tus.collection).status == 204
        assert tus.stored(path) == smuggled
        assert tus.offset(victim) == 0

    def test_what_follows_a_connect_is_no_request(self, tus: Tus) -> None:
        victim = tus.new(5)
        smuggled = head_bytes("DELETE", victim, {"Tus-Resumable": "1.0.0"}, "localhost")
        with tus.connect() as connection:
            connection.send(b"CONNECT /files HTTP/1.1\r\nHost: a\r\n\r\n" + smuggled)
            assert received(connection).count(b"HTTP/1.1 ") == 1
        assert tus.offset(victim) == 0


# -- heads -------------------------------------------------------------------------------------

CODINGS = {
    "gzip, chunked": 501,
    "GZIP , chunked": 501,
    "gzip;q=1, chunked": 501,
    "gzip\r\nTransfer-Encoding: chunked": 501,
    "identity, chunked": 501,
    "gzip": 501,
    "identity": 501,
    "br, deflate, chunked": 501,
    "xchunked": 501,
    "chunked, chunked": 400,
    "chunked\r\nTransfer-Encoding: chunked": 400,
    "chunked, gzip": 400,
    "chunked, identity": 400,
    ",chunked": 400,
    "a b, chunked": 400,
    "": 400,
}


class TestTransferCodings:
    @pytest.mark.parametrize("value", CODINGS)
    @pytest.mark.parametrize("method", ["PATCH", "POST"])
    def test_other_than_chunked_are_refused_and_nothing_is_stored(
        self, tus: Tus, value: str, method: str
    ) -> None:
        path = tus.new(5)
        before = tus.data_files()
        headers = tus.patch_headers(0, {"Upload-Length": "5"} if method == "POST" else {})
        head = head_bytes(
            method, path if method == "PATCH" else tus.collection, headers, "localhost"
        )
        with tus.connect() as connection:
            connection.send(head[:-2] + f"Transfer-Encoding: {value}\r\n\r\n".encode())
            connection.send(chunk(b"hello") + last_chunk())
            response = connection.read_response(method)
            assert response.status == CODINGS[value]
            assert response["Tus-Resumable"] == "1.0.0"
            assert connection.ended()
        assert tus.stored(path) == b""
        assert tus.data_files() == before

    @pytest.mark.parametrize("value", ["chunked", "CHUNKED", " chunked "])
    def test_chunked_is_taken(self, tus: Tus, value: str) -> None:
        path = tus.new(5)
        with tus.begin_patch(path, 0, None, b"hello", {"Transfer-Encoding": value}) as patch:
            patch.connection.send(last_chunk())
            assert patch.response().status == 204


class TestOldVersions:
    """They know no interim responses (RFC 9110, section 10.1.1) and no chunks (RFC 9112, section 6.1)."""

    @pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/0.9"])
    def test_no_100_is_sent(self, tus: Tus, version: bytes) -> None:
        fields = {"Upload-Length": "10", "Content-Type": OCTETS, "Content-Length": "10"}
        fields |= {"Tus-Resumable": "1.0.0", "Expect": "100-continue"}
        head = head_bytes("POST", tus.collection, fields, "localhost")
        with tus.connect() as connection:
            connection.send(head.replace(b"HTTP/1.1", version, 1))
            assert connection.silent_for(0.5)
            connection.send(b"0123456789")
            answer = connection.read_to_end()
        assert answer.startswith(b"HTTP/1.1 201 ")
        assert answer.count(b"HTTP/1.1 ") == 1

    @pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/0.9"])
    def test_chunks_are_refused(self, tus: Tus, version: bytes) -> None:
        path = tus.new(5)
        head = head_bytes(
            "PATCH", path, tus.patch_headers(0, {"Transfer-Encoding": "chunked"}), "localhost"
        )
        with tus.connect() as connection:
            connection.send(head.replace(b"HTTP/1.1", version, 1) + chunk(b"hello") + last_chunk())
            assert connection.read_response("PATCH").status == 400
        assert tus.stored(path) == b""


class TestHost:
    @pytest.mark.parametrize(
        "fields",
        [
            "",
            "Host: a\r\nHost: a\r\n",
            "Host: a\r\nX: y\r\nhost: b\r\n",
            "Host: a b\r\n",
            "Host: a/b\r\n",
            "Host: user@a\r\n",
            "Host: a:b\r\n",
            "Host: a:80:80\r\n",
            "Host: a:999999\r\n",
            "Host: [::1\r\n",
            "Host: \xff\r\n",
            "Host: a?b\r\n",
            f"Host: {'x' * 300}\r\n",
        ],
    )
    def test_has_to_be_one_and_well_formed(self, tus: Tus, fields: str) -> None:
        with tus.connect() as connection:
            connection.send(f"OPTIONS {tus.collection} HTTP/1.1\r\n{fields}\r\n".encode("latin-1"))
            response = connection.read_response("OPTIONS")
            assert (response.status, response.code) == (400, "ERR_BAD_REQUEST")
            assert connection.ended()

    @pytest.mark.parametrize(
        "host", ["a", "", "a:80", "a:", "[::1]:80", "[fe80::1%25eth0]", "ex_am-ple.com.", "1.2.3.4"]
    )
    def test_of_every_form_is_taken(self, tus: Tus, host: str) -> None:
        assert tus.options(headers={"Host": host}).status == 204

    def test_is_not_needed_by_http_1_0(self, tus: Tus) -> None:
        with tus.connect() as connection:
            connection.send(f"OPTIONS {tus.collection} HTTP/1.0\r\n\r\n".encode())
            assert received(connection).startswith(b"HTTP/1.1 204 ")

    def test_in_the_target_counts_instead_of_the_field(self, tus: Tus) -> None:
        created = tus.request(
            "POST",
            f"HTTP://files.example.com:8080{tus.collection}",
            {"Tus-Resumable": "1.0.0", "Upload-Length": "1", "Host": "evil.example.net"},
        )
        assert created.status == 201
        assert created["Location"].startswith("http://files.example.com:8080/files/")

    @pytest.mark.parametrize(
        "target",
        ["http:///files/", "http://u@a/files/", "ftp://a/files/", "http://a b/", "//", "files/"],
    )
    def test_targets_that_name_no_host_of_ours_are_refused(self, tus: Tus, target: str) -> None:
        with tus.connect() as connection:
            connection.send(f"OPTIONS {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert 400 <= connection.read_response("OPTIONS").status < 500


# -- answers from below the application --------------------------------------------------------

ORIGIN_FIELD = f"Origin: {ORIGIN}\r\n"
REFUSED = {
    "431": (
        "POST /files/ HTTP/1.1\r\nHost: a\r\n{first}X: " + "x" * 70_000 + "\r\n{last}\r\n",
        431,
    ),
    "431 by many": (
        "HEAD /files/x HTTP/1.1\r\nHost: a\r\n{first}" + "X: yyyy\r\n" * 9_000 + "{last}\r\n",
        431,
    ),
    "414": ("GET /files/" + "x" * 20_000 + " HTTP/1.1\r\nHost: a\r\n{first}{last}\r\n", 414),
    "400": ("GET /files/ HTTP/1.1\r\n{first}{last}\r\n", 400),
    "501": (
        "POST / HTTP/1.1\r\nHost: a\r\n{first}Transfer-Encoding: gzip\r\n{last}\r\n",
        501,
    ),
}


@pytest.fixture(scope="module")
def picky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tus]:
    """A server that lets one origin read."""
    flags = ("--cors-allow-origin", "https://app[.]example[.]com")
    with ServerProcess(tmp_path_factory.mktemp("picky") / "uploads", *flags) as server:
        yield Tus(server)


class TestAnswersFromBelow:
    @pytest.mark.parametrize("where", ["first", "last"])
    @pytest.mark.parametrize(("request_text", "status"), REFUSED.values(), ids=REFUSED.keys())
    def test_name_the_origin_wherever_it_stands(
        self, tus: Tus, picky: Tus, request_text: str, status: int, where: str
    ) -> None:
        fields = {"first": "", "last": "", where: ORIGIN_FIELD}
        for client in (tus, picky):
            with client.connect() as connection:
                connection.send(request_text.format(**fields).encode())
                response = connection.read_response(request_text.partition(" ")[0])
            assert response.status == status
            assert response["Access-Control-Allow-Origin"] == ORIGIN
            assert "Tus-Resumable" in response.items("Access-Control-Expose-Headers")
            assert response["Vary"] == "Origin"
            assert response["Tus-Resumable"] == "1.0.0"

    @pytest.mark.parametrize(("request_text", "status"), REFUSED.values(), ids=REFUSED.keys())
    def test_say_nothing_to_other_origins_or_none(
        self, picky: Tus, request_text: str, status: int
    ) -> None:
        for field in ("Origin: https://evil.example.net\r\n", ""):
            with picky.connect() as connection:
                connection.send(request_text.format(first=field, last="").encode())
                response = connection.read_response(request_text.partition(" ")[0])
            assert response.status == status
            assert "Access-Control-Allow-Origin" not in response

    def test_are_for_everybody_where_the_origin_is_unknown_and_does_not_matter(
        self, tus: Tus, picky: Tus
    ) -> None:
        garbage = b"nonsense\r\n\r\n"
        for client, allowed in ((tus, "*"), (picky, None)):
            with client.connect() as connection:
                connection.send(garbage)
                response = connection.read_response()
            assert response.status == 400
            assert response.get("Access-Control-Allow-Origin") == allowed
            assert "Access-Control-Allow-Credentials" not in response

    def test_do_not_name_the_origin_of_an_earlier_request(self, picky: Tus) -> None:
        with picky.connect() as connection:
            page = {"Origin": ORIGIN}
            assert connection.request("OPTIONS", picky.collection, page).status == 204
            connection.send(b"nonsense\r\n\r\n")
            response = connection.read_response()
        assert response.status == 400
        assert "Access-Control-Allow-Origin" not in response

    def test_a_head_that_stops_coming(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--network-timeout", "1s"))
        with tus.connect() as connection:
            connection.send(f"GET /files/ HTTP/1.1\r\nHost: a\r\n{ORIGIN_FIELD}X".encode())
            response = connection.read_response()
        assert (response.status, response["Access-Control-Allow-Origin"]) == (408, ORIGIN)

    def test_a_large_head_that_stops_coming_is_refused_at_once(self, tus: Tus) -> None:
        with tus.connect() as connection:
            connection.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000)
            assert connection.read_response().status == 431


# -- too many connections ----------------------------------------------------------------------


class TestTooManyConnections:
    @pytest.mark.parametrize(
        ("method", "status"), [("HEAD", 423), ("PATCH", 503), ("POST", 503), ("GET", 503)]
    )
    def test_are_refused_so_that_no_client_forgets_an_upload(
        self, make_server: MakeServer, method: str, status: int
    ) -> None:
        tus = Tus(make_server("--max-connections", "2"))
        path = tus.finished(b"hello")
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                connection = stack.enter_context(tus.connect())
                assert connection.request("OPTIONS", tus.collection).status == 204
            response = tus.request(method, path, {"Tus-Resumable": "1.0.0", "Origin": ORIGIN})
            assert response.status == status
            assert int(response["Retry-After"]) > 0
            assert response["Access-Control-Allow-Origin"] == ORIGIN
            assert "Upload-Offset" not in response

    def test_one_that_says_nothing_is_told_so_all_the_same(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--max-connections", "1"))
        with tus.connect() as first, tus.connect() as silent:
            assert first.request("OPTIONS", tus.collection).status == 204
            assert silent.read_response().status == 503

    def test_one_that_finds_room_meanwhile_is_served(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--max-connections", "1"))
        with tus.connect() as first:
            assert first.request("OPTIONS", tus.collection).status == 204
            sockets = tus.server.open_sockets()
            with tus.connect() as second:
                wait_until(lambda: tus.server.open_sockets() > sockets, "the second connection")
                first.close()
                wait_until(lambda: tus.server.open_sockets() == sockets, "the first one's end")
                assert second.request("OPTIONS", tus.collection).status == 204

    def test_a_flood_of_silent_ones_is_bounded(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--max-connections", "1"))
        sockets = tus.server.open_sockets()
        with contextlib.ExitStack() as stack:
            flood = [stack.enter_context(tus.connect()) for _ in range(100)]
            answered = [connection.read_response().status for connection in flood[20:]]
            assert set(answered) == {503}
            wait_until(lambda: tus.server.open_sockets() <= sockets + 18, "the others' end")

    def test_there_are_descriptors_for_downloads_of_all(self, make_server: MakeServer) -> None:
        server = make_server("--max-connections", "500")
        soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        assert soft >= min(3 * 500 + 256, hard)


# -- what follows a body that was given up -----------------------------------------------------


class TestBehindARefusedBody:
    """Whatever becomes of a body, the next request on its connection is answered, or the response said that none is."""

    SIZES = (65_535, 65_536, 65_537, 131_072, 1_048_576, 1_048_577, 3_000_000)

    @BOTH_WAYS
    @pytest.mark.parametrize("framing", ["length", "chunked"])
    @pytest.mark.parametrize("room", [0, 1, 30_000])
    def test_a_full_disk(
        self, make_server: MakeServer, flags: tuple[str, ...], framing: str, room: int
    ) -> None:
        server = make_server(*flags)
        tus = Tus(server)
        paths = [tus.new(size) for size in self.SIZES]
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        for size, path in zip(self.SIZES, paths, strict=True):
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (max(room, 1), hard))
            assert self.refused(tus, path, content(size), framing) == 507
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (hard, hard))

    @BOTH_WAYS
    @pytest.mark.parametrize("framing", ["length", "chunked"])
    @pytest.mark.parametrize("kind", ["409", "413", "460", "404"])
    def test_other_refusals(
        self, make_server: MakeServer, flags: tuple[str, ...], framing: str, kind: str
    ) -> None:
        tus = Tus(make_server(*flags))
        for size in self.SIZES:
            path = tus.new(size - 1 if kind == "413" else size)
            headers = {
                "409": {"Upload-Offset": "1"},
                "460": {"Upload-Checksum": "sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA="},
            }.get(kind, {})
            target = tus.collection + "0" * 32 if kind == "404" else path
            status = self.refused(tus, target, content(size), framing, headers)
            assert status == int(kind)
            assert tus.offset(path) == 0

    @staticmethod
    def refused(
        tus: Tus, path: str, data: bytes, framing: str, extra: dict[str, str] | None = None
    ) -> int:
        """The status; fails unless what comes behind it is right."""
        field = (
            {"Transfer-Encoding": "chunked"}
            if framing == "chunked"
            else {"Content-Length": str(len(data))}
        )
        body = chunk(data) + last_chunk() if framing == "chunked" else data
        with tus.connect() as connection:
            connection.send_head("PATCH", path, tus.patch_headers(0, {**field, **(extra or {})}))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(body)
            response = connection.read_response("PATCH")
            if (response.get("Connection") or "").lower() == "close":
                assert connection.ended()
            else:
                assert connection.request("OPTIONS", tus.collection).status == 204
        return response.status


class TestLingering:
    """A connection whose refused body is not read ends when the client's system has the response, not after two seconds."""

    @BOTH_WAYS
    def test_does_not_take_the_time_that_it_may(
        self, make_server: MakeServer, flags: tuple[str, ...]
    ) -> None:
        server = make_server(*flags)
        before = server.open_sockets()
        tus = Tus(server)
        path = tus.new(1 << 30)
        began = time.monotonic()
        for _ in range(6):
            with tus.connect() as connection:
                head = tus.patch_headers(1, {"Content-Length": str(1 << 30)})
                connection.send_head("PATCH", path, head)
                connection.send(bytes(100_000))
                assert connection.read_response("PATCH").status == 409
                assert connection.read_to_end() == b""
                wait_until(lambda: server.open_sockets() <= before, "the connection to end")
        assert time.monotonic() - began < 6 * 1.7

    def test_ends_although_the_client_sends_no_more_and_stays(
        self, make_server: MakeServer
    ) -> None:
        server = make_server()
        before = server.open_sockets()
        tus = Tus(server)
        path = tus.new(100_000)
        with tus.connect() as connection:
            connection.send_head("PATCH", path, tus.patch_headers(1, {"Content-Length": "100000"}))
            connection.send(b"x")
            assert connection.read_response("PATCH").status == 409
            wait_until(lambda: server.open_sockets() <= before, "the connection to end", timeout=30)


class TestIdle:
    def test_a_connection_is_closed_although_a_refused_body_came_late(
        self, make_server: MakeServer
    ) -> None:
        tus = Tus(make_server("--keep-alive-timeout", "1s"))
        path = tus.new(5)
        for late in (b"hello", b"he"):
            with tus.connect() as connection:
                head = tus.patch_headers(3, {"Content-Length": "5"})
                connection.send_head("PATCH", path, head)
                assert connection.read_response("PATCH").status == 409
                connection.send(late)
                assert connection.ended()
