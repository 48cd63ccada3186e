"""A transfer on an event loop of its own, with timings that no client can produce."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from starlette.types import Message
from uvicorn.protocols.http.flow_control import FlowControl

from tusd_py.uploads.receive import BodyEnd
from tusd_py.web.http.direct_body import Collector, Heads, Take, Transfer
from tusd_py.web.http.exchange import Exchange
from tusd_py.web.http.protocol import UploadProtocol
from tusd_py.web.request_body import RequestBody

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SO_RCVLOWAT is asked of Linux")

LENGTH = 70_000
APART = 0.03
"""Seconds between pieces, for each to be read by itself."""


class Lender(asyncio.Protocol):
    """A connection that lends its transport to one transfer."""

    scheme = "http"

    def __init__(self, take: Take) -> None:
        self.loop = asyncio.get_running_loop()
        self.collector = Collector()
        self.take = take
        self.left: int | None = None
        self.transport: asyncio.Transport
        self.flow: FlowControl
        self.transfer: Transfer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.flow = FlowControl(self.transport)
        self.transfer = Transfer(cast(UploadProtocol, self), LENGTH, b"", self.take)
        self.transport.set_protocol(self.transfer)
        self.transfer.begin()

    def end_transfer(self, left: int) -> None:
        self.left = left
        self.flow.pause_reading()

    def eof_received(self) -> None: ...

    def watch_unsent(self) -> None: ...

    @property
    def mark(self) -> int:
        """Bytes from which on the loop is told of them."""
        sock = self.transport.get_extra_info("socket")
        return int(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT))


class Told:
    """A protocol that keeps what it is told."""

    def __init__(self) -> None:
        self.of: list[object] = []

    def data_received(self, data: bytes) -> None:
        self.of.append(data)

    def connection_lost(self, problem: Exception | None) -> None:
        self.of.append(problem)

    def pause_writing(self) -> None:
        self.of.append("pause")

    def resume_writing(self) -> None:
        self.of.append("resume")


def test_what_reads_heads_hands_everything_on() -> None:
    told = Told()
    heads = Heads(cast(UploadProtocol, told))
    heads.get_buffer(-1)[:5] = b"bytes"
    heads.buffer_updated(5)
    heads.pause_writing()
    heads.resume_writing()
    lost = ConnectionResetError()
    heads.connection_lost(lost)
    assert told.of == [b"bytes", "pause", "resume", lost]


Scenario = Callable[[Lender, socket.socket], Awaitable[None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Take, Scenario], None]:
    """Runs a scenario with a transfer and its client, once bytes gather in its socket."""

    async def scene(take: Take, scenario: Scenario) -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            accepted, _ = listening.accept()
        with client:
            _, lender = await loop.connect_accepted_socket(lambda: Lender(take), accepted)
            while lender.mark == 1:
                client.sendall(b"x")
                await asyncio.sleep(APART)
            try:
                await scenario(lender, client)
            finally:
                lender.transport.abort()
                await asyncio.sleep(0)

    def runner(take: Take, scenario: Scenario) -> None:
        with asyncio.Runner(loop_factory=request.param) as loop_runner:
            loop_runner.run(asyncio.wait_for(scene(take, scenario), 30))

    return runner


Run = Callable[[Take, Scenario], None]


def test_collecting_takes_no_byte_of_the_next_request(run: Run) -> None:
    async def scenario(lender: Lender, client: socket.socket) -> None:
        client.sendall(bytes(LENGTH - lender.transfer.received) + b"next")
        # The loop has had no turn in which it might be told.
        lender.transfer.collect()
        assert await lender.transfer.done
        assert (lender.transfer.received, lender.left, lender.mark) == (LENGTH, 0, 1)
        sock = lender.transport.get_extra_info("socket")
        with socket.socket(fileno=sock.fileno()) as raw:
            assert raw.recv(100, socket.MSG_PEEK) == b"next"
            raw.detach()

    run(lambda view: None, scenario)


def test_a_stop_waits_until_what_lay_in_the_socket_is_taken(run: Run) -> None:
    slow: list[asyncio.Event] = []

    def take(view: memoryview) -> Awaitable[Any] | None:
        return slow[0].wait() if slow else None

    async def scenario(lender: Lender, client: socket.socket) -> None:
        before = lender.transfer.received
        slow.append(asyncio.Event())
        client.sendall(b"lies there")
        lender.transfer.stop()
        client.sendall(b"comes too late")
        await asyncio.sleep(APART)
        assert not lender.transfer.done.done()
        slow[0].set()
        assert not await lender.transfer.done
        assert lender.transfer.received == before + len(b"lies there")

    run(take, scenario)


def test_a_stop_while_bytes_are_taken_takes_those_behind_them_once(run: Run) -> None:
    slow: list[asyncio.Event] = []

    def take(view: memoryview) -> Awaitable[Any] | None:
        return slow[0].wait() if slow else None

    async def scenario(lender: Lender, client: socket.socket) -> None:
        before = lender.transfer.received
        slow.append(asyncio.Event())
        client.sendall(b"first")
        lender.transfer.collect()
        client.sendall(b"second")
        lender.transfer.collect()
        assert lender.transfer.received == before + len(b"first")
        lender.transfer.stop()
        slow[0].set()
        assert not await lender.transfer.done
        assert lender.transfer.received == before + len(b"firstsecond")
        assert lender.mark == 1

    run(take, scenario)


def test_what_is_wrong_with_what_lay_in_the_socket_is_told(run: Run) -> None:
    refused: list[Exception] = []

    def take(view: memoryview) -> None:
        if refused:
            raise refused[0]

    async def scenario(lender: Lender, client: socket.socket) -> None:
        refused.append(ValueError("not this"))
        client.sendall(b"piece")
        lender.transfer.stop()
        with pytest.raises(ValueError, match="not this"):
            await lender.transfer.done
        assert lender.mark == 1

    run(take, scenario)


def test_a_stop_without_a_byte_ends_at_once(run: Run) -> None:
    async def scenario(lender: Lender, client: socket.socket) -> None:
        before = lender.transfer.received
        lender.transfer.stop()
        assert not await lender.transfer.done
        assert (lender.transfer.received, lender.mark) == (before, 1)

    run(lambda view: None, scenario)


def test_a_write_that_takes_long_is_no_idleness_of_the_client(run: Run) -> None:
    begun, written = asyncio.Event(), asyncio.Event()

    def take(view: memoryview) -> Awaitable[Any] | None:
        if len(view) < 1000:
            return None
        begun.set()
        return written.wait()

    async def scenario(lender: Lender, client: socket.socket) -> None:
        client.sendall(bytes(40_000))
        await begun.wait()
        exchange = cast(Exchange, SimpleNamespace(transfer=lambda *_: lender.transfer))
        body = RequestBody(never, idle_timeout=0.05, exchange=exchange)
        streaming = asyncio.create_task(body.stream_to(lambda _: None, lambda: None))
        await asyncio.sleep(0.2)
        assert body.end is None
        written.set()
        # Now the client is waited for.
        assert await streaming
        assert body.end is BodyEnd.TIMED_OUT

    run(take, scenario)


async def never() -> Message:
    raise AssertionError("the body comes straight from the socket")
