"""Bytes from a file to a client by sendfile(2), past Python's memory and past the transport's buffer.

The loop's own `sendfile` is not used, as uvloop has none. Between the transport and this module the socket is shared: a copy
of its descriptor is watched and written to while the transport has nothing to write. Nothing here knows HTTP: the caller
has sent the header fields, and nothing else may write to the transport until the call is over.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from dataclasses import dataclass

from tusd_py.web.http.stalls import unacknowledged

# What one call hands to the kernel: some 0.2 ms of copying, after which other connections have their turn.
_MAX_CALL = 1024 * 1024
# A call longer than this waited for the disk, and the next one goes to a thread.
_SLOW_SECONDS = 0.005
_WATCH_SECONDS = 1.0
_NOT_AVAILABLE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


class FileTruncated(OSError):
    """The file ended before all the bytes that were promised to the client."""


def is_supported(transport: asyncio.BaseTransport) -> bool:
    """Whether `sendfile` can serve this transport: a plain socket, without TLS in between."""
    return (
        transport.get_extra_info("sslcontext") is None
        and transport.get_extra_info("socket") is not None
    )


async def sendfile(
    loop: asyncio.AbstractEventLoop,
    transport: asyncio.WriteTransport,
    fd: int,
    offset: int,
    count: int,
    *,
    idle_timeout: float = 60.0,
) -> int:
    """Send `count` bytes of the file `fd` from `offset` on, behind whatever the transport still has to write.

    Returns the number of bytes that the kernel took: less than `count` only when the client is gone or the transport was
    closed. fd stays the caller's, is not moved by this, and must stay open until the call is over.

    Raises asyncio.SendfileNotAvailableError, with nothing sent, where transport or file cannot do it. Raises TimeoutError when
    the client took no byte for `idle_timeout` seconds, FileTruncated when the file is too short, OSError when it cannot be
    read: then, as on cancellation, the transport is aborted, because a response that ends early must not look like a whole
    one.
    """
    if not is_supported(transport):
        raise asyncio.SendfileNotAvailableError("the transport is not a plain socket")
    if count <= 0 or transport.is_closing():
        return 0
    # uvloop and asyncio refuse to watch a descriptor that a transport owns. Besides, the transport
    # may close its own at any time, and the number would then be another connection's.
    copy = os.dup(transport.get_extra_info("socket").fileno())
    try:
        return await _Transfer(loop, transport, copy, fd, offset, count, idle_timeout).run()
    except asyncio.SendfileNotAvailableError:
        raise
    except BaseException:
        transport.abort()
        raise
    finally:
        os.close(copy)


@dataclass(eq=False)
class _Transfer:
    """One call of `sendfile`.

    While the file is in memory, every time that the socket has room is one callback with one system call, and no task is
    woken. Bytes that have to come from the disk are sent by a thread, a call at a time.
    """

    _loop: asyncio.AbstractEventLoop
    _transport: asyncio.WriteTransport
    _socket: int
    _fd: int
    _offset: int
    _remaining: int
    _idle_timeout: float
    _sent: int = 0
    _cold: bool = False
    _over: bool = False
    _error: Exception | None = None

    def __post_init__(self) -> None:
        self._turn: asyncio.Future[None] = self._loop.create_future()
        self._seen = self._progress()
        self._seen_at = self._loop.time()
        self._watch = self._watch_later()

    async def run(self) -> int:
        try:
            while not self._over:
                await self._send_inline()
                if not self._over:
                    await self._send_in_thread()
        finally:
            self._watch.cancel()
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                # Its traceback refers to this frame: a reference cycle.
                del error
        return self._sent

    async def _send_inline(self) -> None:
        """Send in callbacks until it is over, or until the socket has room and the disk has to be waited for."""
        self._turn = self._loop.create_future()
        self._loop.add_writer(self._socket, self._on_room)
        try:
            await self._turn
        finally:
            # Before the descriptor is closed: the transport's keeps the socket alive, so the selector would not forget it.
            self._loop.remove_writer(self._socket)

    def _on_room(self) -> None:
        if self._turn.done():
            return
        if self._transport.is_closing():
            self._end()
        elif self._transport.get_write_buffer_size():
            return  # the header fields first; the transport was woken by the same room
        elif self._cold or not self._is_cached():
            self._turn.set_result(None)
        else:
            self._took(*self._call())

    async def _send_in_thread(self) -> None:
        call = self._loop.run_in_executor(None, self._call)
        try:
            await asyncio.shield(call)
        finally:
            # Neither descriptor may be closed, and its number given to another, under the hands of a running thread.
            while not call.done():
                try:
                    await asyncio.wait([call])
                except asyncio.CancelledError:
                    continue
        self._took(*call.result())

    def _call(self) -> tuple[int | OSError, float]:
        """One system call, and the seconds that it took; called in a thread or in the loop, so it changes nothing."""
        began = time.perf_counter()
        sent: int | OSError
        try:
            sent = os.sendfile(
                self._socket, self._fd, self._offset, min(self._remaining, _MAX_CALL)
            )
        except OSError as error:
            sent = error
        return sent, time.perf_counter() - began

    def _took(self, sent: int | OSError, seconds: float) -> None:
        self._cold = seconds > _SLOW_SECONDS
        if isinstance(sent, int):
            self._sent += sent
            self._offset += sent
            self._remaining -= sent
            if not sent:
                self._end(FileTruncated("the file ended before the bytes that were promised"))
            elif not self._remaining:
                self._end()
        elif isinstance(sent, ConnectionError):
            # The transport does not know yet, and while its reading is paused it would not learn.
            self._transport.abort()
            self._end()
        elif sent.errno in _NOT_AVAILABLE and not self._sent:
            self._end(asyncio.SendfileNotAvailableError("sendfile cannot read this file"))
        elif not isinstance(sent, BlockingIOError | InterruptedError):
            self._end(sent)

    def _end(self, error: Exception | None = None) -> None:
        self._over = True
        self._error = error
        if not self._turn.done():
            self._turn.set_result(None)

    def _is_cached(self) -> bool:
        """Whether the last byte of the next call is in memory, as far as the file system can tell."""
        last = self._offset + min(self._remaining, _MAX_CALL) - 1
        try:
            os.preadv(self._fd, [bytearray(1)], last, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a file system without RWF_NOWAIT: how long the call takes will tell
        return True

    def _watch_later(self) -> asyncio.TimerHandle:
        return self._loop.call_later(min(_WATCH_SECONDS, self._idle_timeout / 4), self._look)

    def _look(self) -> None:
        """Look after the client, as the selector does not tell that it is idle nor that the transport was closed."""
        now = self._loop.time()
        seen = self._progress()
        if self._transport.is_closing():
            self._end()
            return
        if seen != self._seen or self._turn.done():  # or the disk is waited for, not the client
            self._seen, self._seen_at = seen, now
        elif now - self._seen_at >= self._idle_timeout:
            self._end(TimeoutError(f"the client took no byte for {self._idle_timeout:g} seconds"))
            return
        self._watch = self._watch_later()

    def _progress(self) -> tuple[int, int]:
        """Numbers that change when the client takes anything: see `stalls`."""
        waiting = self._transport.get_write_buffer_size() + unacknowledged(self._socket)
        return self._sent, waiting
