"""A process that runs out of file descriptors: requests are refused for a while, and nothing is lost."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import MakeServer
from tests.support.server import ServerProcess
from tests.support.tus import OCTETS, Tus
from tests.support.waiting import wait_until
from tests.support.wire import Connection, Response

TUS = {"Tus-Resumable": "1.0.0"}


@contextmanager
def no_descriptors_left(server: ServerProcess) -> Iterator[None]:
    """For the time of the block, the server can open nothing."""
    before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    # What is open stays open, also above the limit.
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)


def refused(response: Response, status: int) -> bool:
    return response.status == status and int(response["Retry-After"]) > 0


def test_requests_are_refused_for_a_while_and_nothing_is_lost(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path, whole = tus.new(10), tus.finished(b"finished")
    assert tus.patch(path, 0, b"hello").status == 204
    # No record is in the memory of the new process.
    server.terminate()
    server.restart()
    data = {**TUS, "Content-Type": OCTETS, "Content-Length": "5"}
    with contextlib.ExitStack() as stack:
        open_ = [stack.enter_context(tus.connect()) for _ in range(6)]
        for connection in open_:
            assert connection.request("OPTIONS", tus.collection).status == 204
        post, body, patch, head, get, again = open_
        server.mark_lines()
        with no_descriptors_left(server):
            creation = {**TUS, "Upload-Length": "5"}
            assert refused(post.request("POST", tus.collection, creation), 503)
            assert refused(
                body.request("POST", tus.collection, {**data, "Upload-Length": "5"}, b"hello"), 503
            )
            assert refused(
                patch.request("PATCH", path, {**data, "Upload-Offset": "5"}, b"world"), 503
            )
            assert refused(head.request("HEAD", path, TUS), 423)
            assert refused(get.request("GET", whole), 503)
            assert refused(again.request("HEAD", whole, TUS), 423)
    assert tus.offset(path) == 5
    assert tus.patch(path, 5, b"world").status == 204
    assert tus.stored(path) == b"helloworld"
    assert tus.get(whole).body == b"finished"
    # What was refused left nothing.
    assert len(list(server.upload_dir.glob("*.info"))) == 2
    lines = server.lines_since_mark()
    assert not [line for line in lines if "Traceback" in line]
    assert len([line for line in lines if "out of descriptors" in line]) == 1


def test_no_connection_is_closed_without_a_response(make_server: MakeServer) -> None:
    """More connections than the process has descriptors: each is served, or told to come again."""
    server = make_server(prefix=("prlimit", "--nofile=100:100"))
    tus = Tus(server)
    path = tus.new(5)
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(server.address)) for _ in range(200)]
        answers = set()
        for connection in crowd:
            connection.settimeout(60)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(
                    b"HEAD %b HTTP/1.1\r\nHost: a\r\nTus-Resumable: 1.0.0\r\n\r\n" % path.encode()
                )
            answers.add(connection.recv(12))
        assert answers == {b"HTTP/1.1 200", b"HTTP/1.1 423", b"HTTP/1.1 503"}
    wait_until(lambda: tus.patch(path, 0, b"hello").status == 204, "the end of the crowd")
    assert not [line for line in server.lines if "Traceback" in line]


def test_each_connection_that_is_served_can_send_its_upload(make_server: MakeServer) -> None:
    server = make_server(prefix=("prlimit", "--nofile=100:100"))
    tus = Tus(server)
    paths = [tus.new(100_000) for _ in range(40)]
    with contextlib.ExitStack() as stack:
        patches = [
            stack.enter_context(tus.begin_patch(path, 0, 100_000, bytes(99_999))) for path in paths
        ]
        for patch in patches:
            patch.send(b"\0")
        statuses = [patch.response().status for patch in patches]
    assert set(statuses) == {204, 503}
    assert statuses.count(204) >= 12
    codes = [line for line in server.lines if "ERR_UNAVAILABLE" in line]
    assert codes == []


def test_each_connection_that_is_served_can_have_a_download(make_server: MakeServer) -> None:
    """It takes three descriptors: none were left for anything else, not even for other downloads."""
    server = make_server(prefix=("prlimit", "--nofile=1024:1024"))
    tus = Tus(server)
    path, other = tus.finished(bytes(20_000_000)), tus.new(10)
    with contextlib.ExitStack() as stack:
        crowd = [
            stack.enter_context(Connection(server.address, receive_buffer=4096)) for _ in range(380)
        ]
        for connection in crowd:
            connection.send_head("GET", path)
        statuses = [connection.sock.recv(12) for connection in crowd]
        assert set(statuses) == {b"HTTP/1.1 200", b"HTTP/1.1 503"}
        assert statuses.count(b"HTTP/1.1 200") >= 250
        crowd[statuses.index(b"HTTP/1.1 200")].close()
        wait_until(lambda: tus.patch(other, 0, b"0123456789").status == 204, "a place", 10)
    assert "out of descriptors" not in server.log()
