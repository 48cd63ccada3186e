"""The body of a request as a stream of bytes that can be ended from outside.

It hides every way in which a body can end behind its end and keeps the reason: complete, disconnected, nothing came for too
long, asked for by another request, shutdown. Not for: what becomes of the bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

from starlette.types import Message, Receive

from tusd_py.reception import BodyEnd

Trailers = Callable[[], Mapping[str, str]]


def no_trailers() -> Mapping[str, str]:
    """For servers that do not hand trailer fields over."""
    return {}


class StreamBody:
    """A body that comes in ASGI messages. idle_timeout: seconds without a byte after which it ends."""

    def __init__(
        self, receive: Receive, *, idle_timeout: float, trailers: Trailers = no_trailers
    ) -> None:
        self.end: BodyEnd | None = None
        self.received = 0
        self._receive = receive
        self._idle_timeout = idle_timeout
        self._trailers = trailers
        self._last = False
        self._waiting: asyncio.Timeout | None = None

    async def read(self) -> bytes:
        """The next bytes; empty at the end, whatever ended it."""
        while self.end is None:
            if self._last:
                self.end = BodyEnd.COMPLETE
                break
            message = await self._next()
            if message is None:
                continue
            if message["type"] == "http.disconnect":
                self.end = BodyEnd.DISCONNECTED
                break
            self._last = not message.get("more_body", False)
            data = cast(bytes, message.get("body", b""))
            if data:
                self.received += len(data)
                return data
        return b""

    async def _next(self) -> Message | None:
        """The next message, or None if the body was ended while waiting for it."""
        try:
            async with asyncio.timeout(self._idle_timeout) as self._waiting:
                return await self._receive()
        except TimeoutError:
            if self.end is None:
                self.end = BodyEnd.TIMED_OUT
            return None
        finally:
            self._waiting = None

    def stop(self, end: BodyEnd) -> None:
        """Ends the body from outside: `read` returns at once, and reads no more."""
        if self.end is None:
            self.end = end
            if self._waiting is not None and not self._waiting.expired():
                self._waiting.reschedule(asyncio.get_running_loop().time())

    def trailers(self) -> Mapping[str, str]:
        """Trailer fields; empty before the end."""
        return self._trailers() if self.end is BodyEnd.COMPLETE else {}
