"""The end of a connection whose client may still be sending.

Closing a socket with unread bytes makes the kernel reset the connection, and the response may be lost with it. So our side is
ended first, and what still comes is read and thrown away: until the body is over, the client closes, or the time is up. Where
a client has more to send than is read here, the wait ends soon after its system has acknowledged the response.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import Protocol

_MOST_SECONDS = 2.0
_MOST_BYTES = 16 * 1024 * 1024
"""Many clients send a whole chunk before they read: for them a reset in the middle hides the response."""
_LOOK_SECONDS = 0.05
_GRACE_SECONDS = 0.2
"""Between the arrival of the response in the client's system and the end of a connection whose body is not read to its end."""


class ReadControl(Protocol):
    """What pauses and resumes reading from a transport."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Linger:
    """Ends a transport's sending side now, and closes it as soon as the client had a chance to read the response.

    left: bytes of the body that did not come yet, None where the request does not tell.
    """

    __slots__ = (
        "_delivered_at",
        "_ends_at",
        "_flow",
        "_left",
        "_loop",
        "_seen",
        "_timer",
        "_transport",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        flow: ReadControl,
        left: int | None,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._flow = flow
        self._left = left
        self._seen = 0
        self._ends_at = loop.time() + _MOST_SECONDS
        self._delivered_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        if transport.can_write_eof():
            transport.write_eof()
        if left is not None and left > _MOST_BYTES:
            self._read_no_more()
        else:
            flow.resume_reading()
            self._timer = loop.call_later(_MOST_SECONDS, self._finish)

    def discard(self, size: int) -> None:
        """Counts bytes that came and were thrown away."""
        self._seen += size
        if self._left is not None and self._seen == self._left:
            # That was the whole body: nothing is left that could reset the connection.
            self._finish()
        elif self._seen > _MOST_BYTES:
            self._read_no_more()

    def cancel(self) -> None:
        """Stops the timer, as the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read_no_more(self) -> None:
        self._flow.pause_reading()
        self.cancel()
        self._look()

    def _look(self) -> None:
        now = self._loop.time()
        if self._delivered_at is None and self._is_delivered():
            self._delivered_at = now
        begin = self._delivered_at
        if now >= self._ends_at or (begin is not None and now - begin >= _GRACE_SECONDS):
            self._finish()
        else:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)

    def _finish(self) -> None:
        if (
            self._transport.get_extra_info("sslcontext")
            and not self._transport.get_write_buffer_size()
        ):
            # TLS would wait half a minute for the client to agree to the end.
            self._transport.abort()
        else:
            self._transport.close()

    def _is_delivered(self) -> bool:
        """Whether the client's system has acknowledged the response and the end of our side."""
        return not self._transport.get_write_buffer_size() and not unacknowledged(
            self._transport.get_extra_info("socket").fileno()
        )


class Flush:
    """Closes a TLS transport once all of its response was handed to the system.

    Its own `close` aborts the connection 30 s later, whatever a slow client still has to read. raw: the transport below TLS.
    idle_timeout: seconds without progress after which the connection is aborted.
    """

    __slots__ = ("_idle_timeout", "_left", "_loop", "_progress_at", "_raw", "_timer", "_transport")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        raw: asyncio.Transport,
        idle_timeout: float,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._raw = raw
        self._idle_timeout = idle_timeout
        self._left = self._unsent()
        self._progress_at = loop.time()
        self._timer = loop.call_later(_LOOK_SECONDS, self._look)

    def discard(self, size: int) -> None:
        """Ignore bytes that came: the last request was answered."""

    def cancel(self) -> None:
        """Stop the timer, as the connection is gone."""
        self._timer.cancel()

    def _unsent(self) -> int:
        return self._transport.get_write_buffer_size() + self._raw.get_write_buffer_size()

    def _look(self) -> None:
        left = self._unsent()
        now = self._loop.time()
        if left < self._left:
            self._left, self._progress_at = left, now
        if not left:
            self._transport.close()
        elif now - self._progress_at > self._idle_timeout:
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)


def unacknowledged(descriptor: int) -> int:
    """Bytes that a socket still has to send or that the peer has not acknowledged; 0 where the system does not tell."""
    try:
        answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    count: int = struct.unpack("i", answer)[0]
    return count
