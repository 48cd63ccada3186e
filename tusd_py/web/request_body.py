"""The body of a request as a stream of bytes that can be ended from outside.

However a body ends, its reader sees the end of the stream; `end` has the reason: complete, disconnected, timed out, interrupted
by another request, shutdown. Not for: storing the bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import cast

from starlette.types import Message, Receive

from tusd_py.uploads.receive import BodyEnd, GetBuffer, Watcher, WriteView
from tusd_py.web.http.direct_body import Transfer
from tusd_py.web.http.exchange import Exchange


@dataclass(slots=True, eq=False, repr=False)
class RequestBody:
    """A body that comes in ASGI messages or, where our own server is in front, straight from the socket.

    idle_timeout: seconds after which it ends if a byte is waited for. exchange: our server's extension of the request. direct:
    whether the straight way may be taken. way: "direct" or "stream" once it was taken.
    """

    _receive: Receive
    _: KW_ONLY
    idle_timeout: float
    exchange: Exchange | None = None
    direct: bool = True
    end: BodyEnd | None = field(init=False, default=None)
    watcher: Watcher | None = field(init=False, default=None)
    received: int = field(init=False, default=0)
    way: str | None = field(init=False, default=None)
    _last: bool = field(init=False, default=False)
    _begun: bool = field(init=False, default=False)
    _waiting: asyncio.Timeout | None = field(init=False, default=None)
    _transfer: Transfer | None = field(init=False, default=None)
    _timer: asyncio.TimerHandle = field(init=False)

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end, for whatever reason."""
        while self.end is None:
            if self._last:
                self.end = BodyEnd.COMPLETE
                break
            if not self._begun:
                self._begun = True
                whole = None
                if self.exchange is not None:
                    # There is a time-out here.
                    self.exchange.ends_idle = False
                    whole = self.exchange.arrived()
                if whole is not None:
                    self._last = True
                    self.way = "stream"
                    self.received = len(whole)
                    return whole
            message = await self._next()
            if message is None:
                continue
            if message["type"] == "http.disconnect":
                self.end = BodyEnd.DISCONNECTED
                break
            self._last = not message.get("more_body", False)
            data = cast(bytes, message.get("body", b""))
            if data:
                self.way = "stream"
                self.received += len(data)
                return data
        return b""

    async def stream_to(self, write: WriteView, get_buffer: GetBuffer) -> bool:
        """See `Body.stream_to`: straight from the socket, past the ASGI messages. Afterwards `read` returns nothing more."""
        if self.exchange is None or not self.direct or self.end is not None:
            return False
        transfer = self._transfer = self.exchange.transfer(write, get_buffer)
        if transfer is None:
            return False
        self.way = "direct"
        self._look_for_idleness(transfer)
        try:
            whole = await transfer.done
        except asyncio.CancelledError:
            # The file may be closed only once no write is running.
            await transfer.abandon()
            raise
        finally:
            self._timer.cancel()
            self._transfer = None
            self.received += transfer.received
        if whole:
            self.end = BodyEnd.COMPLETE
        elif self.end is None:
            self.end = BodyEnd.DISCONNECTED
        return True

    def _look_for_idleness(self, transfer: Transfer) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= transfer.last_activity + self.idle_timeout:
            # Bytes of a slow body may be in the socket.
            transfer.collect()
        # During a write nothing is read of the client, which may have sent more.
        ends_at = (now if transfer.is_writing else transfer.last_activity) + self.idle_timeout
        if now >= ends_at:
            self.stop(BodyEnd.TIMED_OUT)
        else:
            self._timer = loop.call_at(ends_at, self._look_for_idleness, transfer)

    async def _next(self) -> Message | None:
        """Return the next message; None if the body was ended meanwhile."""
        try:
            async with asyncio.timeout(self.idle_timeout) as self._waiting:
                return await self._receive()
        except TimeoutError:
            if self.end is None:
                self.end = BodyEnd.TIMED_OUT
            return None
        finally:
            self._waiting = None

    def stop(self, end: BodyEnd) -> None:
        """End the body from outside: a waiting `read` returns at once, and reads nothing more."""
        if self.end is None:
            self.end = end
            if self._transfer is not None:
                self._transfer.stop()
            if self._waiting is not None and not self._waiting.expired():
                self._waiting.reschedule(asyncio.get_running_loop().time())

    def trailers(self) -> Mapping[str, str]:
        """Return the trailer fields; empty before the end."""
        if self.exchange is None or self.end is not BodyEnd.COMPLETE:
            return {}
        return self.exchange.trailers()
