"""Tells whether a client still takes what it is sent, on however slow a link.

Room in the socket does not tell: it is announced only once a third of a buffer of megabytes is free, which on a slow link takes
longer than any time-out. So the bytes that the client's system has not acknowledged are counted, too.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable


class StallWatch:
    """Looks at a transport from time to time. clock: of the loop, in seconds. raw: the transport below TLS, or None."""

    __slots__ = ("_clock", "_idle_timeout", "_progress_at", "_raw", "_transport", "_untaken")

    def __init__(
        self,
        clock: Callable[[], float],
        transport: asyncio.WriteTransport,
        raw: asyncio.Transport | None,
        idle_timeout: float,
    ) -> None:
        self._clock = clock
        self._transport = transport
        self._raw = raw
        self._idle_timeout = idle_timeout
        self._untaken = untaken(transport, raw)
        self._progress_at = clock()

    def is_stalled(self) -> bool:
        """Whether the client has taken no byte for the idle time-out, as far as was seen by calls of this."""
        left, now = untaken(self._transport, self._raw), self._clock()
        if left < self._untaken:
            self._progress_at = now
        # It may also grow: a client that reads nothing can have TLS answer, and encryption adds bytes.
        self._untaken = left
        return now - self._progress_at >= self._idle_timeout


def untaken(transport: asyncio.WriteTransport, raw: asyncio.Transport | None) -> int:
    """Bytes that the client's system has not taken. raw: the transport below TLS, or None."""
    found = (transport if raw is None else raw).get_extra_info("socket")
    sent = unacknowledged(found.fileno()) if found is not None and found.fileno() >= 0 else 0
    return unsent(transport, raw) + sent


def unsent(transport: asyncio.WriteTransport, raw: asyncio.Transport | None) -> int:
    """Bytes that the system did not take yet. raw: the transport below TLS, or None."""
    below = 0 if raw is None else raw.get_write_buffer_size()
    return transport.get_write_buffer_size() + below


def unacknowledged(descriptor: int) -> int:
    """Bytes that a socket still has to send or that the peer has not acknowledged; 0 where the system does not tell."""
    try:
        answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    count: int = struct.unpack("i", answer)[0]
    return count
