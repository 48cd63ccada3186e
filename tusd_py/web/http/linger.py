"""The end of a connection whose client may still be sending.

Closing a socket with unread bytes makes the kernel reset the connection, and the response may be lost with it. So our side is
ended first, and what still comes is read and thrown away: until the body is over, the client closes, or the time is up. Where
a client has more to send than is read here, the wait ends soon after its system has acknowledged the response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from tusd_py.web.http.flow import FlowControl
from tusd_py.web.http.stalls import StallWatch, unsent, untaken

_MOST_SECONDS = 2.0
_MOST_BYTES = 16 * 1024 * 1024
"""Many clients send a whole chunk before they read: for them a reset in the middle hides the response."""
_LOOK_SECONDS = 0.05
_GRACE_SECONDS = 0.2
"""Between the arrival of the response in the client's system and the end of a connection whose body is not read to its end."""


@dataclass(slots=True, eq=False)
class Linger:
    """Ends a transport's sending side now, and closes it as soon as the client had a chance to read the response.

    left: bytes of the body that did not come yet, None where the request does not tell. close: closes the transport,
    or aborts it if the client stops reading.
    """

    _loop: asyncio.AbstractEventLoop
    _transport: asyncio.Transport
    _flow: FlowControl
    _left: int | None
    _close: Callable[[], None]
    _seen: int = field(init=False, default=0)
    _ends_at: float = field(init=False)
    _delivered_at: float | None = field(init=False, default=None)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._ends_at = self._loop.time() + _MOST_SECONDS
        if self._transport.can_write_eof():
            self._transport.write_eof()
        if self._left is not None and self._left > _MOST_BYTES:
            self._read_no_more()
        else:
            self._flow.resume_reading()
            self._timer = self._loop.call_later(_MOST_SECONDS, self.finish)

    def discard(self, size: int) -> None:
        """Counts bytes that came and were thrown away."""
        self._seen += size
        if self._left is not None and self._seen == self._left:
            # That was the whole body: nothing is left that could reset the connection.
            self.finish()
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
            self.finish()
        else:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)

    def finish(self) -> None:
        """Wait no longer for the client."""
        if self._transport.get_extra_info("sslcontext") and not untaken(
            self._transport, self._flow.raw
        ):
            # TLS would wait half a minute for the client to agree to the end.
            self._transport.abort()
        else:
            self._close()

    def _is_delivered(self) -> bool:
        """Whether the client's system has acknowledged the response and the end of our side."""
        return not untaken(self._transport, self._flow.raw)


class Flush:
    """Closes a transport once its client has all of its response, and aborts it if the client stops reading.

    A transport's own `close` does not do: without TLS it waits for ever for a client that does not read, and TLS aborts the
    connection 30 s later, whatever a slow client still has to read. Without TLS the transport may be closing already, and the
    system delivers what it took.
    raw: the transport below TLS, or None. idle_timeout: seconds without progress after which the connection is aborted.
    """

    __slots__ = ("_loop", "_raw", "_timer", "_transport", "_watch")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        raw: asyncio.Transport | None,
        idle_timeout: float,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._raw = raw
        self._watch = StallWatch(loop.time, transport, raw, idle_timeout)
        self._timer = loop.call_later(_LOOK_SECONDS, self._look)

    def discard(self, size: int) -> None:
        """Ignore bytes that came: the last request was answered."""

    def cancel(self) -> None:
        """Stop the timer, as the connection is gone."""
        self._timer.cancel()

    def _look(self) -> None:
        # Without TLS the system delivers what it took.
        left = unsent if self._raw is None else untaken
        if not left(self._transport, self._raw):
            self._transport.close()
        elif self._watch.is_stalled():
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)
