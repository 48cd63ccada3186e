"""GET of a finished upload: conditions and ranges over the wire, safe names, and interruptions."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.certificate import make_certificate
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection, ConnectionEnded

BODY = bytes(range(256)) * 4000  # 1,024,000 bytes
LARGE = 200 * 1024 * 1024


@pytest.fixture(scope="module")
def path(server: ServerProcess) -> str:
    """A finished upload that holds BODY, called `ä "b".txt`."""
    named = {"Upload-Metadata": metadata(filename='ä "b".txt', filetype="text/plain")}
    return Tus(server).finished(BODY, headers=named)


@pytest.fixture(scope="module")
def large(server: ServerProcess) -> tuple[str, str]:
    """A finished upload of 200 MiB, and its SHA-256."""
    tus, piece = Tus(server), os.urandom(8 * 1024 * 1024)
    digest = hashlib.sha256()
    path = tus.new(LARGE)
    for offset in range(0, LARGE, len(piece)):
        part = offset.to_bytes(8, "big") + piece[8:]
        digest.update(part)
        assert tus.patch(path, offset, part).status == 204
    return path, digest.hexdigest()


def read_download(connection: Connection, path: str) -> tuple[int, str]:
    """GET on a connection, without keeping the body: the number of its bytes, and their SHA-256."""
    connection.send_head("GET", path)
    reader = connection.sock.makefile("rb")
    status = reader.readline()
    assert b" 200 " in status
    length = 0
    while (line := reader.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    digest, count = hashlib.sha256(), 0
    while data := reader.read(min(1024 * 1024, length - count)):
        digest.update(data)
        count += len(data)
    return count, digest.hexdigest()


class TestWhatIsServed:
    def test_the_whole_upload(self, tus: Tus, path: str) -> None:
        response = tus.get(path)
        assert response.status == 200
        assert response.body == BODY
        assert response["Content-Length"] == str(len(BODY))
        assert response["Accept-Ranges"] == "bytes"
        assert response["Tus-Resumable"] == "1.0.0"
        assert response["ETag"].startswith('"')
        assert response["Last-Modified"].endswith(" GMT")

    def test_the_name_and_the_type_are_safe(self, tus: Tus, path: str) -> None:
        response = tus.get(path)
        assert response["Content-Type"] == "text/plain; charset=utf-8"
        assert response["Content-Disposition"] == (
            "inline; filename=\"a _b_.txt\"; filename*=UTF-8''%C3%A4%20_b_.txt"
        )
        assert response["X-Content-Type-Options"] == "nosniff"
        assert response["Content-Security-Policy"].startswith("sandbox;")

    @pytest.mark.parametrize(
        ("filename", "filetype"),
        [
            (b"x.html", b"text/html"),
            (b"x\r\nSet-Cookie: a=b", b"text/html\r\nSet-Cookie: a=b"),
            (b"\xff" * 10_000, b"\x00" * 10_000),
        ],
    )
    def test_hostile_metadata_changes_nothing(
        self, tus: Tus, filename: bytes, filetype: bytes
    ) -> None:
        named = {"Upload-Metadata": metadata(filename=filename, filetype=filetype)}
        response = tus.get(tus.finished(b"<script>", headers=named))
        assert response.status == 200
        assert response["Content-Type"] == "application/octet-stream"
        assert response["Content-Disposition"].startswith("attachment")
        assert "Set-Cookie" not in response

    def test_an_empty_upload(self, tus: Tus) -> None:
        path = tus.finished(b"")
        response = tus.get(path)
        assert (response.status, response.body) == (200, b"")
        assert response["Content-Length"] == "0"
        assert tus.get(path, {"Range": "bytes=1-"}).status == 416

    def test_an_unfinished_upload_is_not(self, tus: Tus) -> None:
        path = tus.new(10, body=b"12345")
        assert tus.get(path).status == 404
        assert tus.get(tus.collection + "0" * 32).status == 404

    def test_a_terminated_upload_is_not(self, tus: Tus) -> None:
        path = tus.finished(b"12345")
        assert tus.delete(path).status == 204
        assert tus.get(path).status == 404

    def test_a_joined_upload_is(self, tus: Tus) -> None:
        parts = [tus.finished(data, {"Upload-Concat": "partial"}) for data in (b"one", b"two")]
        final = tus.create(headers={"Upload-Concat": "final;" + " ".join(parts)})
        assert final.status == 201
        assert tus.get(path_of(final["Location"])).body == b"onetwo"

    def test_nothing_where_downloads_are_disabled(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--disable-download"))
        response = tus.get(tus.finished(b"12345"))
        assert response.status in (404, 405)
        assert b"12345" not in response.body


class TestRangesAndConditions:
    def test_a_part(self, tus: Tus, path: str) -> None:
        response = tus.get(path, {"Range": "bytes=1000-1999"})
        assert response.status == 206
        assert response.body == BODY[1000:2000]
        assert response["Content-Range"] == f"bytes 1000-1999/{len(BODY)}"
        assert tus.get(path, {"Range": "bytes=-7"}).body == BODY[-7:]
        assert tus.get(path, {"Range": f"bytes={len(BODY) - 3}-"}).body == BODY[-3:]

    def test_a_part_that_there_is_not(self, tus: Tus, path: str) -> None:
        response = tus.get(path, {"Range": f"bytes={len(BODY)}-"})
        assert response.status == 416
        assert response["Content-Range"] == f"bytes */{len(BODY)}"
        assert BODY[:100] not in response.body

    def test_several_parts_are_the_whole(self, tus: Tus, path: str) -> None:
        response = tus.get(path, {"Range": "bytes=0-1,5-6"})
        assert (response.status, len(response.body)) == (200, len(BODY))

    def test_a_broken_off_download_goes_on(self, tus: Tus, path: str) -> None:
        first = tus.get(path)
        for validator in (first["ETag"], first["Last-Modified"]):
            wait_until(
                lambda value=validator: (  # type: ignore[misc]
                    tus.get(path, {"Range": "bytes=500-", "If-Range": value}).status == 206
                ),
                "the date to be older than a second",
            )
            rest = tus.get(path, {"Range": "bytes=500-", "If-Range": validator})
            assert BODY[:500] + rest.body == BODY
        assert tus.get(path, {"Range": "bytes=500-", "If-Range": '"other"'}).body == BODY

    def test_what_is_known_is_not_sent_again(self, tus: Tus, path: str) -> None:
        first = tus.get(path)
        for known in (
            {"If-None-Match": first["ETag"]},
            {"If-None-Match": f'"x", W/{first["ETag"]}'},
            {"If-Modified-Since": first["Last-Modified"]},
        ):
            response = tus.get(path, known)
            assert (response.status, response.body) == (304, b"")
            assert response["ETag"] == first["ETag"]

    def test_what_is_not_meant_is_not_sent(self, tus: Tus, path: str) -> None:
        for wrong in (
            {"If-Match": '"other"'},
            {"If-Unmodified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"},
        ):
            response = tus.get(path, wrong)
            assert response.status == 412
            assert BODY[:100] not in response.body
        assert tus.get(path, {"If-Match": tus.get(path)["ETag"]}).status == 200

    def test_the_tag_survives_a_restart_and_tells_uploads_apart(
        self, make_server: MakeServer
    ) -> None:
        server = make_server()
        tus = Tus(server)
        paths = [tus.finished(b"same") for _ in range(2)]
        before = [tus.get(path)["ETag"] for path in paths]
        assert before[0] != before[1]
        server.terminate()
        server.restart()
        assert [tus.get(path)["ETag"] for path in paths] == before

    def test_the_connection_goes_on_after_each_of_them(self, tus: Tus, path: str) -> None:
        with tus.connect() as connection:
            for headers, status in (
                ({}, 200),
                ({"Range": "bytes=5-9"}, 206),
                ({"Range": "bytes=9999999-"}, 416),
                ({"If-None-Match": "*"}, 304),
                ({"If-Match": '"x"'}, 412),
                ({}, 200),
            ):
                assert tus.request("GET", path, headers, on=connection).status == status

    def test_requests_in_one_go_are_answered_in_turn(self, tus: Tus, path: str) -> None:
        with tus.connect() as connection:
            for first in (0, 10, 20):
                connection.send_head("GET", path, {"Range": f"bytes={first}-{first + 999_999}"})
            for first in (0, 10, 20):
                assert connection.read_response().body == BODY[first : first + 1_000_000]


class TestTransfers:
    def test_a_large_one_takes_no_memory(self, tus: Tus, large: tuple[str, str]) -> None:
        path, digest = large
        with tus.connect() as connection:
            before = tus.server.memory()
            assert read_download(connection, path) == (LARGE, digest)
            assert tus.server.memory() - before < 16 * 1024 * 1024

    def test_over_a_unix_socket(self, make_server: MakeServer, tmp_path: Path) -> None:
        sock = tmp_path / "s"
        make_server("--unix-sock", str(sock))
        with Connection(str(sock)) as connection:
            created = connection.request(
                "POST",
                "/files/",
                {
                    "Tus-Resumable": "1.0.0",
                    "Upload-Length": str(len(BODY)),
                    "Content-Type": "application/offset+octet-stream",
                },
                BODY,
            )
            assert created.status == 201
            assert connection.request("GET", path_of(created["Location"])).body == BODY

    def test_over_tls(
        self, make_server: MakeServer, certificate: tuple[Path, Path], tmp_path: Path
    ) -> None:
        cert, key = certificate
        server = make_server("--tls-certificate", str(cert), "--tls-key", str(key))
        context = ssl.create_default_context(cafile=str(cert))
        with Connection(server.address, tls=context) as connection:
            headers = {
                "Tus-Resumable": "1.0.0",
                "Upload-Length": str(len(BODY)),
                "Content-Type": "application/offset+octet-stream",
            }
            created = connection.request("POST", "/files/", headers, BODY)
            assert created.status == 201
            assert created["Location"].startswith(f"https://{server.host}:{server.port}/files/")
            assert connection.request("GET", path_of(created["Location"])).body == BODY

    @pytest.mark.parametrize("how", ["close", "reset"])
    def test_clients_that_leave_take_everything_along(
        self, tus: Tus, large: tuple[str, str], how: str
    ) -> None:
        server, (path, digest) = tus.server, large
        assert tus.options().status == 204

        def descriptors() -> int:
            # Not all: a thread of the store that begins meanwhile has one of its own.
            count = server.open_sockets()
            for descriptor in Path(f"/proc/{server.pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    count += os.readlink(descriptor).endswith(id_of(path))
            return count

        before = descriptors()
        for _ in range(10):
            with tus.connect() as connection:
                connection.send_head("GET", path)
                assert connection.sock.recv(100_000)
                if how == "reset":
                    connection.reset()
        wait_until(lambda: descriptors() <= before, "descriptors to be closed")
        with tus.connect() as connection:
            assert read_download(connection, path) == (LARGE, digest)

    def test_a_client_that_stalls_is_cut_off(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--network-timeout", "3s"))
        path = tus.new(64 * 1024 * 1024)
        for offset in range(0, 64 * 1024 * 1024, 8 * 1024 * 1024):
            assert tus.patch(path, offset, bytes(8 * 1024 * 1024)).status == 204
        with Connection(tus.server.address, receive_buffer=65536) as connection:
            connection.send_head("GET", path)
            tus.server.wait_for_line("download ended early", timeout=30)
            with pytest.raises((ConnectionEnded, ConnectionResetError)):
                connection.read_response()
        assert tus.options().status == 204
        # Nothing is wrong with the server.
        assert not any(" ERROR " in line for line in tus.server.lines)

    def test_a_file_that_became_shorter_is_told_by_the_connections_end(self, tus: Tus) -> None:
        """An incomplete response must never look complete."""
        size = 64 * 1024 * 1024
        path = tus.new(size)
        for offset in range(0, size, 8 * 1024 * 1024):
            assert tus.patch(path, offset, bytes(8 * 1024 * 1024)).status == 204
        with Connection(tus.server.address, receive_buffer=65536) as connection:
            connection.send_head("GET", path)
            assert connection.sock.recv(1000, socket.MSG_PEEK)
            os.truncate(tus.server.data_file(id_of(path)), size // 2)
            with pytest.raises((ConnectionEnded, ConnectionResetError)):
                connection.read_response()
        assert tus.options().status == 204

    def test_termination_does_not_cut_a_running_download(self, tus: Tus) -> None:
        path = tus.finished(BODY * 8)
        with Connection(tus.server.address, receive_buffer=65536) as connection:
            connection.send_head("GET", path)
            assert connection.sock.recv(1000, socket.MSG_PEEK)
            assert tus.delete(path).status == 204
            assert connection.read_response().body == BODY * 8
        assert tus.get(path).status == 404

    def test_shutdown_does_not_wait_for_a_slow_reader(self, make_server: MakeServer) -> None:
        server = make_server("--shutdown-timeout", "1s")
        tus = Tus(server)
        path = tus.finished(BODY * 16)
        with Connection(server.address, receive_buffer=65536) as connection:
            connection.send_head("GET", path)
            assert connection.sock.recv(1000, socket.MSG_PEEK)
            # Well under the 10 seconds that are the default.
            assert server.terminate(timeout=9) == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"))
