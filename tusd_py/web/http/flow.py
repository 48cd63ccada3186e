"""Flow control of one connection, and an event that takes little memory.

Thousands of connections are open for hours: what asyncio's own classes keep ready before it is needed adds up.
"""

from __future__ import annotations

import asyncio


class Event:
    """`asyncio.Event` without its queue of waiters, which takes 600 bytes before anything waits."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[asyncio.Future[None]] = []

    def set(self) -> None:
        """Set the event and wake every waiter."""
        self._is_set = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        """Reset the event."""
        self._is_set = False

    async def wait(self) -> None:
        """Return when the event is set."""
        if self._is_set:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        finally:
            self._waiting.remove(waiter)


class FlowControl:
    """Pauses and resumes both directions of a transport.

    held: while it is set, `resume_reading` does nothing. raw: the transport below TLS, which is paused with the other one, as
    TLS would end both directions when it saw the end of one.
    """

    __slots__ = ("_is_writable", "_transport", "held", "raw", "read_paused", "write_paused")

    def __init__(self, transport: asyncio.Transport, raw: asyncio.Transport | None = None) -> None:
        self._transport = transport
        self.raw = raw
        self._is_writable = Event()
        self._is_writable.set()
        self.read_paused = False
        self.write_paused = False
        self.held = False

    async def drain(self) -> None:
        """Return when the transport takes more to write."""
        await self._is_writable.wait()

    def pause_reading(self) -> None:
        """Read nothing more from the socket."""
        if not self.read_paused:
            self.read_paused = True
            self._transport.pause_reading()
            if self.raw is not None:
                self.raw.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless reading is held."""
        if self.read_paused and not self.held:
            self.read_paused = False
            if self.raw is not None:
                self.raw.resume_reading()
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self.write_paused = True
        self._is_writable.clear()

    def resume_writing(self) -> None:
        """The transport's buffer has room again."""
        self.write_paused = False
        self._is_writable.set()
