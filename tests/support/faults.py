"""A TCP proxy that injects network faults at an exact byte.

It stands between any client and any server and knows nothing of HTTP. Each accepted connection
gets one :class:`Plan` (what happens to the bytes going up, client to server, and down); a
:class:`Link` tells what has happened, with events to wait for. It runs an event loop of its own in
a thread, so that blocking tests and clients in other processes can use it.

    with FaultProxy(server.address) as proxy:
        proxy.plan(Plan(up=Way(cut_after=70_000, cut="rst")))   # the next connection
        ...                                                     # later ones pass untouched
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

BLOCK = 64 * 1024
WAIT = 60.0
"""Seconds that a test waits at most for an event."""


@dataclass(frozen=True)
class Way:
    """The plan for the bytes in one direction. Counts are of bytes since the connection began.

    ``delay``: seconds that every block is late. ``rate``: bytes per second. ``cut_after``: exactly
    so many bytes pass, then the whole connection ends on both sides, in the manner of ``cut``.
    ``stall_after``: then nothing passes any more, and nothing ends, until ``Link.release()``.
    ``half_close_after``: then the receiver sees FIN from this direction, the other lives on.
    """

    delay: float = 0.0
    rate: float | None = None
    cut_after: int | None = None
    cut: Literal["fin", "rst"] = "fin"
    stall_after: int | None = None
    half_close_after: int | None = None


@dataclass(frozen=True)
class Plan:
    """The plan for one connection."""

    up: Way = Way()
    down: Way = Way()


@dataclass(eq=False)
class Link:
    """One connection through the proxy, and events about its fate."""

    plan: Plan
    up_bytes: int = 0
    down_bytes: int = 0
    healed: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)
    half_closed: threading.Event = field(default_factory=threading.Event)
    cut: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    @property
    def released(self) -> bool:
        """Whether a stalled direction was resumed."""
        return self._released.is_set()

    def release(self) -> None:
        """Resume a stalled direction."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._released.set)

    def wait(self, event: Literal["stalled", "half_closed", "cut", "closed"]) -> None:
        """Wait until it has happened; fail if it does not."""
        happened: threading.Event = getattr(self, event)
        assert happened.wait(WAIT), f"not {event}: {self.up_bytes} up, {self.down_bytes} down"


class _Ended(Exception):
    """The connection was ended by plan: both directions stop."""


class FaultProxy:
    """Listens on a port of its own and passes every connection on to ``target``."""

    def __init__(self, target: tuple[str, int], default: Plan | None = None) -> None:
        """``default``: the plan of connections without one from :meth:`plan`."""
        self.target = target
        self.default = default or Plan()
        self.links: list[Link] = []
        self.port = 0
        self._plans: deque[Plan] = deque()
        self._accepted = threading.Condition()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    def plan(self, *plans: Plan) -> None:
        """The next connections get these, one each, in order."""
        self._plans.extend(plans)

    def drop_plans(self) -> None:
        """Let the next connections pass untouched."""
        self._plans.clear()

    def heal(self) -> None:
        """New connections pass untouched, and open ones too, unless they stall already.

        A client may send its next request on any connection that is open: with `default` alone its plan would go on.
        """
        self.default = Plan()
        for link in list(self.links):
            link.healed = not link.stalled.is_set()

    @property
    def planned(self) -> int:
        """How many plans wait for a connection."""
        return len(self._plans)

    def take_links(self) -> list[Link]:
        """The connections so far, which are forgotten here: for long runs."""
        with self._accepted:
            taken, self.links = self.links, []
            return taken

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def url(self, path: str = "/files/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def link(self, number: int) -> Link:
        """The connection number ``number`` (from 0); waits until it is there."""
        with self._accepted:
            there = self._accepted.wait_for(lambda: len(self.links) > number, WAIT)
            assert there, f"connection {number} never came"
            return self.links[number]

    # -- the thread ----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(WAIT)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._ready.set()
        tasks: set[asyncio.Task[None]] = set()
        clients: list[socket.socket] = []
        self._loop.add_reader(listener, self._accept, listener, tasks, clients)
        await self._stop.wait()
        self._loop.remove_reader(listener)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Those of tasks that had not begun.
        for each in (listener, *clients):
            each.close()

    def _accept(
        self,
        listener: socket.socket,
        tasks: set[asyncio.Task[None]],
        clients: list[socket.socket],
    ) -> None:
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        clients.append(client)
        link = Link(self._plans.popleft() if self._plans else self.default)
        link._loop = self._loop
        task = self._loop.create_task(self._pass(client, link))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        with self._accepted:
            self.links.append(link)
            self._accepted.notify_all()

    async def _pass(self, client: socket.socket, link: Link) -> None:
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.sock_connect(server, self.target)
            up = asyncio.create_task(self._pump(client, server, link, "up"))
            down = asyncio.create_task(self._pump(server, client, link, "down"))
            try:
                await asyncio.gather(up, down)
            except _Ended:
                link.cut.set()
            except OSError:
                # One side is gone (reset): the other side shall see the same.
                _reset_on_close(client, server)
            finally:
                for task in (up, down):
                    task.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        except OSError:
            _reset_on_close(client)
        finally:
            client.close()
            server.close()
            link.closed.set()

    async def _pump(
        self, source: socket.socket, sink: socket.socket, link: Link, name: Literal["up", "down"]
    ) -> None:
        """Pass one direction on until its FIN or its plan's end."""
        way = link.plan.up if name == "up" else link.plan.down
        passed = 0
        began = time.monotonic()
        while True:
            room = BLOCK if link.healed else await self._obey(way, passed, source, sink, link)
            if room == 0:
                return
            data = await self._loop.sock_recv(source, min(BLOCK, room))
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            if way.delay:
                await asyncio.sleep(way.delay)
            await self._loop.sock_sendall(sink, data)
            passed += len(data)
            setattr(link, f"{name}_bytes", passed)
            if way.rate is not None:
                await asyncio.sleep(max(0.0, began + passed / way.rate - time.monotonic()))

    async def _obey(
        self, way: Way, passed: int, source: socket.socket, sink: socket.socket, link: Link
    ) -> int:
        """Apply the plan after ``passed`` bytes; return how many more may pass now (0: none ever)."""
        if way.cut_after == passed:
            await _flushed(sink)
            if way.cut == "rst":
                _reset_on_close(source, sink)
            raise _Ended
        if way.half_close_after == passed:
            sink.shutdown(socket.SHUT_WR)
            link.half_closed.set()
            return 0
        if way.stall_after == passed:
            await _flushed(sink)
            link.stalled.set()
            await link._released.wait()
        marks = (way.cut_after, way.half_close_after, way.stall_after)
        ahead = [mark - passed for mark in marks if mark is not None and mark > passed]
        # A tenth of a second's worth at a time, so that a slow line trickles.
        paced = max(1, int(way.rate / 10)) if way.rate is not None else BLOCK
        return min(ahead, default=BLOCK) if way.rate is None else min([*ahead, paced])


def _reset_on_close(*socks: socket.socket) -> None:
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _flushed(sock: socket.socket) -> None:
    """Wait until the peer's kernel has all that was sent: a reset would drop the rest."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        (queued,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))
        if queued == 0:
            return
        await asyncio.sleep(0.001)
