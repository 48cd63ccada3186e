"""Receive the body of a request directly from the socket, without the HTTP parser.

While it does so, a `Transfer` is the transport's protocol. Bytes are received into one buffer of the process, or into one
that the application names, and written before any other connection is read. On a slow link each packet would cost a wake-up,
a read and a write. So if a body arrives in small pieces, the system reports them only once there are many (`SO_RCVLOWAT`),
and all slow bodies are read together every few seconds. Not for: storing the bytes, the rest of HTTP.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from tusd_py.web.http.flow import FlowControl

Take = Callable[[memoryview], "Awaitable[None] | None"]
"""Write the next bytes of a body, which are valid during the call only. A result is awaited before the next call. An exception
ends the transfer."""

Room = Callable[[], "memoryview | None"]
"""Return a buffer for the next bytes; None for no preference. Called before every read."""

TRANSFER_FROM = 64 * 1024
"""Bytes from which on a body is received directly. Shorter ones mostly arrive together with their head."""

_buffer = memoryview(bytearray(1024 * 1024))
"""One buffer for all connections: its bytes are written before any other connection is read."""

_head_buffer = memoryview(bytearray(16 * 1024))
"""Likewise for the heads of requests."""

_SMALL = 16 * 1024
_FEW = 4
"""Number of small reads in a row after which a body counts as slow."""
_MARK = 32 * 1024
"""SO_RCVLOWAT for slow bodies, in bytes: half of the first TCP window, so that the sender never waits."""
_FAST = 4 * _MARK
"""Bytes in one read from which on a body is not slow any more."""
_GATHER = 4.0
"""Seconds after which a slow body is read, however few bytes there are: the most that it loses if the server is killed."""
_TURNS = 16
"""Number of groups that slow bodies are read in, one after the other, as reading all at once would delay other requests."""
_NEVER = -(2**62)


class Connection(Protocol):
    """What a transfer needs of its connection, which is an `UploadProtocol`."""

    transport: asyncio.Transport
    flow: FlowControl
    loop: asyncio.AbstractEventLoop
    collector: Collector
    scheme: str

    def data_received(self, data: bytes, /) -> None: ...

    def eof_received(self) -> bool: ...

    def connection_lost(self, exc: Exception | None, /) -> None: ...

    def watch_unsent(self) -> None:
        """Abort a transport that is closed, now or next, if the client does not take what is still to be sent."""

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def end_transfer(self, left: int, /) -> None:
        """The transport is the parser's again; `left` bytes of the body were not received."""


class Collector:
    """Reads slow bodies, many at a time. One for all connections of an event loop."""

    def __init__(self) -> None:
        # Sets, as an entry of one takes less memory than a timer for each body.
        self._turns: list[set[Transfer]] = [set() for _ in range(_TURNS)]
        self._now = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, transfer: Transfer) -> None:
        """Add a slow body, whose bytes stay in its socket until the next read."""
        min(self._turns, key=len).add(transfer)
        self._wait()

    def discard(self, transfer: Transfer) -> None:
        """Remove a body that has ended or is not slow any more."""
        for turn in self._turns:
            turn.discard(transfer)

    def _wait(self) -> None:
        if self._timer is None and any(self._turns):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_GATHER / _TURNS, self._take_turn)

    def _take_turn(self) -> None:
        self._timer = None
        self._now = (self._now + 1) % _TURNS
        for transfer in list(self._turns[self._now]):
            transfer.collect()
        self._wait()


@dataclass(slots=True, eq=False, repr=False)
class Transfer(asyncio.BufferedProtocol):
    """A body that is received directly. While that lasts, this is the transport's protocol.

    Attributes:
        done: Resolved at the end: True for a whole body, False for one that was cut off or stopped, or what `take` raised.
            To stop waiting for it, call `abandon`.
        received: Bytes that were written.
        last_activity: When the last of them arrived, or was written if that took longer, by the loop's clock.
    """

    _protocol: Connection
    _left: int
    _parsed: bytes
    _take: Take
    _room: Room | None = None
    _view: memoryview = field(init=False, default=_buffer)
    _busy: asyncio.Task[None] | None = field(init=False, default=None)
    _stopped: bool = field(init=False, default=False)
    _behind: bool = field(init=False, default=False)
    _over: bool = field(init=False, default=False)
    _small: int = field(init=False, default=0)
    # Bytes below which the system reports nothing; 0 while it reports every byte.
    _mark: int = field(init=False, default=0)
    _loop: asyncio.AbstractEventLoop = field(init=False)
    done: asyncio.Future[bool] = field(init=False)
    received: int = field(init=False, default=0)
    last_activity: float = field(init=False)

    def begin(self) -> None:
        """Write what the parser has read already, and read on. Called once, before anything else."""
        loop = self._loop = self._protocol.loop
        self.done = loop.create_future()
        self.last_activity = loop.time()
        if self._parsed:
            parsed, self._parsed = self._parsed, b""
            self._took(memoryview(parsed))
        if self._busy is None and not self._over:
            self._protocol.flow.resume_reading()

    @property
    def is_writing(self) -> bool:
        """Whether bytes are being written, so that none are read."""
        return self._busy is not None

    def stop(self) -> None:
        """End the transfer, after the bytes that the socket holds now were written."""
        # During a write there may be more in the socket; what arrives later is not read.
        self._behind = self._busy is not None
        self.collect()
        self._stopped = True
        if self._busy is None:
            self._end(False)

    async def abandon(self) -> None:
        """End the transfer for a caller that no longer awaits `done`; return when no write is running any more."""
        self.stop()
        if self._busy is not None:
            await asyncio.wait([self._busy])
        if self.done.done() and not self.done.cancelled():
            self.done.exception()

    # What the transport calls

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._room is not None:
            room = self._room()
            self._view = _buffer if room is None else room
        return self._view[: self._left]

    def buffer_updated(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._mark:
            if nbytes >= _FAST:
                self._hear_of(0)
            elif self._left < self._mark:
                # The last bytes do not wait for further ones.
                self._hear_of(self._left)
        elif nbytes >= _SMALL:
            self._small = 0
        else:
            self._small += 1
            if self._small == _FEW:
                self._gather()
        self._took(self._view[:nbytes])

    def eof_received(self) -> None:
        # In the middle of the body: the rest never comes, and the transport closes.
        self._end(False)
        self._protocol.watch_unsent()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)
        if self._busy is None:
            self._end(False)
        else:
            self._stopped = True

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    # Slow bodies

    def collect(self) -> None:
        """Read and write what the socket holds."""
        while (
            self._mark
            and self._left
            and self._busy is None
            and not self._protocol.transport.is_closing()
        ):
            wanted = self.get_buffer(-1)
            try:
                count = os.readv(self._socket().fileno(), [wanted])
            except OSError:
                # There is nothing, or the connection is lost, which the transport will report.
                return
            if count:
                self.buffer_updated(count)
            if count < len(wanted):
                return

    def _gather(self) -> None:
        """Leave bytes in the socket until there are many, if the system supports that."""
        if sys.platform != "linux" or self._protocol.scheme != "http":
            self._small = _NEVER
            return
        if self._socket().family not in (socket.AF_INET, socket.AF_INET6):
            self._small = _NEVER
            return
        self._protocol.collector.add(self)
        self._hear_of(min(_MARK, self._left))

    def _hear_of(self, count: int) -> None:
        """Let the system report no fewer bytes than `count`; 0 for its default, every byte."""
        self._mark = count
        self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count or 1)
        if not count:
            self._small = 0
            self._protocol.collector.discard(self)

    def _socket(self) -> socket.socket:
        found: socket.socket = self._protocol.transport.get_extra_info("socket")
        return found

    # Inside

    def _took(self, view: memoryview) -> None:
        self.last_activity = self._loop.time()
        try:
            rest = self._take(view)
        except Exception as problem:  # noqa: BLE001 - raised again where `done` is awaited
            self._end(problem)
            return
        self.received += len(view)
        if rest is not None:
            self._protocol.flow.pause_reading()
            self._busy = self._loop.create_task(self._wait_for(rest))
        elif not self._left:
            self._end(True)

    async def _wait_for(self, rest: Awaitable[None]) -> None:
        problem: Exception | None = None
        try:
            await rest
        except Exception as raised:  # noqa: BLE001 - as above
            problem = raised
        self._busy = None
        self.last_activity = self._loop.time()
        if problem is not None:
            self._end(problem)
        elif not self._left:
            self._end(True)
        elif self._stopped:
            if self._behind:
                self._behind = False
                self.collect()
            if self._busy is None:
                self._end(False)
        else:
            self._protocol.flow.resume_reading()

    def _end(self, result: bool | Exception) -> None:
        if self._over:
            return
        self._over = True
        if self._mark:
            self._protocol.collector.discard(self)
            if not self._protocol.transport.is_closing():
                self._hear_of(0)
            self._mark = 0
        self._protocol.end_transfer(self._left)
        if self.done.cancelled():
            # The caller is gone.
            return
        if isinstance(result, Exception):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


class Heads(asyncio.BufferedProtocol):
    """The transport's protocol between direct bodies: reads no more at a time than most heads have.

    A direct body is mostly followed by another one, and what is read of it together with its head has to be copied.
    """

    __slots__ = ("_protocol",)

    def __init__(self, protocol: Connection) -> None:
        self._protocol = protocol

    def get_buffer(self, sizehint: int) -> memoryview:
        return _head_buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.data_received(bytes(_head_buffer[:nbytes]))

    def eof_received(self) -> bool:
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
