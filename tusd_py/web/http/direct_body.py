"""A body straight from the socket, past the HTTP parser: for its time it is the transport's protocol.

What comes in goes into one buffer of the process and is taken away before anybody else reads. On a slow link every packet would
be a wake-up, a read and a write of its own; so where a body comes in small pieces, the system is asked to report them only when
there are many (`SO_RCVLOWAT`), and all the slow ones are looked after together every few seconds. Not for: what becomes of the
bytes, and the rest of HTTP.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Protocol

from tusd_py.web.http.flow import FlowControl

Take = Callable[[memoryview], "Awaitable[None] | None"]
"""Takes the next bytes of a body, which are only there during the call. What it returns, if anything, is awaited before there
are more. What it raises ends the transfer."""

Room = Callable[[], "memoryview | None"]
"""Where the next bytes of a body are wanted; None where that is no matter. Asked before every read."""

TRANSFER_FROM = 64 * 1024
"""Bytes. Shorter bodies mostly come in with their head."""

_buffer = memoryview(bytearray(1024 * 1024))
"""What is not wanted elsewhere goes here and is taken away before anybody else reads: one buffer for all connections."""

_head_buffer = memoryview(bytearray(16 * 1024))
"""What is read with the next head goes here likewise."""

_SMALL = 16 * 1024
_FEW = 4
"""So many small reads in a row tell that a body comes in slowly."""
_MARK = 32 * 1024
"""Bytes that a slow body is left to gather in the socket: half of the first window, so that its sender never waits."""
_FAST = 4 * _MARK
"""Bytes in one read that tell that it comes in slowly no longer."""
_GATHER = 4.0
"""Seconds after which they are taken, however few: as much of its time a slow client loses at most if the server is killed."""
_TURNS = 16
"""So many times in these seconds some are emptied, as all at once would hold up everybody else."""
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

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def end_transfer(self, left: int, /) -> None:
        """The transport is the parser's again; `left` bytes of the body were not received."""


class Collector:
    """Takes what slow bodies have gathered, of many at a time. One for all connections of an event loop."""

    def __init__(self) -> None:
        # Whose turn is at the same time; an entry of a set is the least that a body can take here.
        self._turns: list[set[Transfer]] = [set() for _ in range(_TURNS)]
        self._now = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, transfer: Transfer) -> None:
        """From now on a body gathers in its socket."""
        min(self._turns, key=len).add(transfer)
        self._wait()

    def discard(self, transfer: Transfer) -> None:
        """Not any more."""
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


class Transfer(asyncio.BufferedProtocol):
    """A body on its way past the parser: for this time it is the transport's protocol.

    done: resolved when it is over, with True for a whole body and False for one that was cut off or stopped; an exception is
    what `take` raised. Who does not want to wait any longer calls `abandon`. received: bytes that were taken. last_activity:
    when the last of them came, by the loop's clock.
    """

    __slots__ = (
        "_behind",
        "_busy",
        "_left",
        "_loop",
        "_mark",
        "_over",
        "_parsed",
        "_protocol",
        "_room",
        "_small",
        "_stopped",
        "_take",
        "_view",
        "done",
        "last_activity",
        "received",
    )

    def __init__(
        self,
        protocol: Connection,
        left: int,
        parsed: bytes,
        take: Take,
        room: Room | None = None,
    ) -> None:
        self._protocol = protocol
        self._loop = protocol.loop
        self._left = left
        self._parsed = parsed
        self._take = take
        self._room = room
        self._view = _buffer
        self._busy: asyncio.Task[None] | None = None
        self._stopped = False
        self._behind = False
        self._over = False
        self._small = 0
        # Bytes below which the system keeps quiet; 0 where it tells of every one.
        self._mark = 0
        self.done: asyncio.Future[bool] = self._loop.create_future()
        self.received = 0
        self.last_activity = self._loop.time()

    def begin(self) -> None:
        """Takes what the parser had read already, and reads on."""
        if self._parsed:
            parsed, self._parsed = self._parsed, b""
            self._took(memoryview(parsed))
        if self._busy is None and not self._over:
            self._protocol.flow.resume_reading()

    def stop(self) -> None:
        """Ends the transfer; what was taken stays taken, and what has gathered in the socket is taken first."""
        # Behind what is just being taken there may be more; but no more than there is now, as its end is wanted.
        self._behind = self._busy is not None
        self.collect()
        self._stopped = True
        if self._busy is None:
            self._end(False)

    async def abandon(self) -> None:
        """Ends it whatever becomes of `done`, and returns when nothing that `take` began is under way any more."""
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
                # Its last byte is not to wait for others.
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
        """Takes what has gathered in the socket."""
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
                # There is nothing, or the connection is lost, which the transport finds out.
                return
            if count:
                self.buffer_updated(count)
            if count < len(wanted):
                return

    def _gather(self) -> None:
        """Lets the bytes gather in the socket from now on, where the system can do that."""
        if sys.platform != "linux" or self._protocol.scheme != "http":
            self._small = _NEVER
            return
        if self._socket().family not in (socket.AF_INET, socket.AF_INET6):
            self._small = _NEVER
            return
        self._protocol.collector.add(self)
        self._hear_of(min(_MARK, self._left))

    def _hear_of(self, count: int) -> None:
        """From now on the system tells of no fewer bytes than these; 0 for every one, as it does by itself."""
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
        except Exception as problem:  # noqa: BLE001 - raised again by whoever awaits `done`
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
            # Nobody wants to know.
            return
        if isinstance(result, Exception):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


class Heads(asyncio.BufferedProtocol):
    """In the protocol's place once there was a transfer: reads no more at a time than a head mostly is.

    A body that goes past the parser will most likely be followed by another, of which the less is to be copied, the less was
    read together with its head.
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
