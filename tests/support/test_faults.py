"""The fault proxy works as described: tested with a bare socket on either side."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from tests.support import ports
from tests.support.faults import FaultProxy, Plan, Way


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        sock.settimeout(60)
        yield sock


class Pair:
    """A client's and a server's socket with the proxy between them."""

    def __init__(self, proxy: FaultProxy, listener: socket.socket) -> None:
        self.client = socket.create_connection(proxy.address, timeout=60)
        self.server, _ = listener.accept()
        self.server.settimeout(60)

    def close(self) -> None:
        self.client.close()
        self.server.close()


def receive_all(sock: socket.socket) -> bytes:
    data = b""
    while part := sock.recv(65536):
        data += part
    return data


def test_passes_everything_and_the_end_of_each_direction(listener: socket.socket) -> None:
    with FaultProxy(listener.getsockname()) as proxy:
        pair = Pair(proxy, listener)
        data = bytes(range(256)) * 4096
        pair.client.sendall(data[:1000])
        pair.client.shutdown(socket.SHUT_WR)
        assert receive_all(pair.server) == data[:1000]
        pair.server.sendall(data[:5000])
        pair.server.close()
        assert receive_all(pair.client) == data[:5000]
        proxy.link(0).wait("closed")
        assert (proxy.link(0).up_bytes, proxy.link(0).down_bytes) == (1000, 5000)
        pair.close()


def test_cuts_by_fin_after_exactly_n_bytes(listener: socket.socket) -> None:
    with FaultProxy(listener.getsockname(), Plan(up=Way(cut_after=70_001))) as proxy:
        pair = Pair(proxy, listener)
        pair.client.sendall(b"x" * 100_000)
        assert len(receive_all(pair.server)) == 70_001
        proxy.link(0).wait("cut")
        pair.close()


def test_cuts_by_rst_after_exactly_n_bytes(listener: socket.socket) -> None:
    with FaultProxy(listener.getsockname(), Plan(up=Way(cut_after=10, cut="rst"))) as proxy:
        pair = Pair(proxy, listener)
        pair.client.sendall(b"0123456789ABC")
        assert pair.server.recv(100) == b"0123456789"
        with pytest.raises(ConnectionResetError):
            pair.server.recv(100)
        with pytest.raises(ConnectionResetError):
            pair.client.recv(100)
        pair.close()


def test_cuts_the_way_down(listener: socket.socket) -> None:
    with FaultProxy(listener.getsockname(), Plan(down=Way(cut_after=3))) as proxy:
        pair = Pair(proxy, listener)
        pair.server.sendall(b"HTTP/1.1")
        assert receive_all(pair.client) == b"HTT"
        pair.close()


def test_stalls_until_released(listener: socket.socket) -> None:
    with FaultProxy(listener.getsockname(), Plan(up=Way(stall_after=5))) as proxy:
        pair = Pair(proxy, listener)
        pair.client.sendall(b"hello world")
        link = proxy.link(0)
        link.wait("stalled")
        assert pair.server.recv(100) == b"hello"
        assert link.up_bytes == 5
        pair.server.sendall(b"still here")
        assert pair.client.recv(100) == b"still here"
        link.release()
        assert pair.server.recv(100) == b" world"
        pair.close()


def test_half_closes_one_direction_and_keeps_the_other(listener: socket.socket) -> None:
    with FaultProxy(listener.getsockname(), Plan(up=Way(half_close_after=4))) as proxy:
        pair = Pair(proxy, listener)
        pair.client.sendall(b"four and more")
        assert receive_all(pair.server) == b"four"
        proxy.link(0).wait("half_closed")
        pair.server.sendall(b"answer")
        assert pair.client.recv(100) == b"answer"
        pair.close()


def test_limits_the_rate(listener: socket.socket) -> None:
    with FaultProxy(listener.getsockname(), Plan(up=Way(rate=100_000))) as proxy:
        # The proxy counts from when the connection began.
        began = time.monotonic()
        pair = Pair(proxy, listener)
        pair.client.sendall(b"x" * 30_000)
        pair.client.shutdown(socket.SHUT_WR)
        assert len(receive_all(pair.server)) == 30_000
        assert time.monotonic() - began >= 0.2
        pair.close()


def test_delays(listener: socket.socket) -> None:
    with FaultProxy(listener.getsockname(), Plan(down=Way(delay=0.1))) as proxy:
        pair = Pair(proxy, listener)
        began = time.monotonic()
        pair.server.sendall(b"late")
        assert pair.client.recv(10) == b"late"
        assert time.monotonic() - began >= 0.1
        pair.close()


def test_plans_go_to_connections_in_order_and_then_the_default(listener: socket.socket) -> None:
    with FaultProxy(listener.getsockname()) as proxy:
        proxy.plan(Plan(up=Way(cut_after=1)), Plan(up=Way(cut_after=2)))
        for expected in (1, 2, 4):
            pair = Pair(proxy, listener)
            pair.client.sendall(b"four")
            with suppress(OSError):
                # One that is cut may be over by now.
                pair.client.shutdown(socket.SHUT_WR)
            assert len(receive_all(pair.server)) == expected
            pair.close()
        assert len(proxy.links) == 3


def test_a_client_that_resets_is_seen_by_the_server(listener: socket.socket) -> None:
    with FaultProxy(listener.getsockname()) as proxy:
        pair = Pair(proxy, listener)
        pair.client.sendall(b"x")
        assert pair.server.recv(1) == b"x"
        pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        pair.client.close()
        with pytest.raises(ConnectionResetError):
            pair.server.recv(1)
        pair.close()


def test_a_server_that_is_gone_ends_the_connection() -> None:
    # The reset may come before the connection is known to stand.
    with (
        closing(ports.reserve()) as nobody,
        FaultProxy(nobody.getsockname()) as proxy,
        pytest.raises(ConnectionResetError),
        socket.create_connection(proxy.address, timeout=60) as client,
    ):
        client.recv(1)
