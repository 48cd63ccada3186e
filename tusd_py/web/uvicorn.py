"""uvicorn's HTTP protocol with what an upload server needs besides.

It adds to `HttpToolsProtocol`: trailer fields of requests; bytes that arrived are handed over before the news that the
connection is gone; limits on heads and connections, and a time-out for heads; a close that lets the client read the response
although its body was not taken; files by sendfile (the ASGI extension "http.response.zerocopysend"); a shutdown that ends
bodies at once. It knows HTTP and nothing of uploads.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from typing import Any, Literal, NotRequired, Protocol, TypedDict, cast

import httptools
import uvicorn
from uvicorn._types import (
    ASGI3Application,
    ASGIReceiveEvent,
    ASGISendEvent,
    HTTPRequestEvent,
    HTTPScope,
)
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from tusd_py.protocol.headers import KNOWN, Headers, RawHeaders
from tusd_py.web import heads
from tusd_py.web.sendfile import is_supported, sendfile
from tusd_py.web.transfer import TRANSFER_FROM, Collector, Heads, Room, Take, Transfer

EXTENSION = "tusd_py"
"""Name of our ASGI extension: `scope["extensions"]["tusd_py"]` is the request's `Exchange`."""

_MAX_URL = 16 * 1024
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 1024 * 1024


class ConnectionGauge(Protocol):
    """Who is told how many connections there are."""

    connections_open: int


@dataclass(slots=True)
class _Gauge:
    connections_open: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What connections may cost: their number, bytes of a request's head, seconds for it to come in, and without progress.

    concat_size: bytes of `Upload-Concat`, which are not counted in head_size; 0 counts them like any other field.
    """

    connections: int = 10_000
    head_size: int = 64 * 1024
    concat_size: int = 0
    idle_timeout: float = 60.0


class UploadConfig(uvicorn.Config):
    """uvicorn's configuration with our limits. fixed_headers: fields of the answers that never reach the application."""

    def __init__(
        self,
        app: Any,
        *,
        limits: Limits,
        gauge: ConnectionGauge | None = None,
        fixed_headers: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(app, http=UploadProtocol, ws="none", log_config=None, **kwargs)
        self.limits = limits
        self.collector = Collector()
        self.long_heads = heads.LongHeads(limits.concat_size)
        self.gauge: ConnectionGauge = gauge or _Gauge()
        self.fixed_headers = dict(fixed_headers or {})


class UploadServer(uvicorn.Server):
    """uvicorn's server; `on_shutdown` is called first when it has to stop, so that requests in flight come to an end."""

    def __init__(self, config: Config, *, on_shutdown: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_shutdown = on_shutdown

    async def shutdown(self, sockets: Any = None) -> None:
        self._on_shutdown()
        await super().shutdown(sockets)
        # A stop that was asked for is a success: the signal is not raised once more.
        self._captured_signals.clear()


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


class _FileMessage(TypedDict):
    file: _HasDescriptor
    offset: int
    count: int
    more_body: NotRequired[bool]


class _RefusedHead(Exception):
    """Ends the parsing of a head that is refused."""


class Exchange:
    """One request and its response, as far as the ASGI messages do not tell: our ASGI extension."""

    __slots__ = ("_protocol", "_trailers", "cycle")

    def __init__(self, protocol: UploadProtocol) -> None:
        self._protocol = protocol
        self._trailers: RawHeaders = []
        self.cycle: _Cycle | None = None

    def add_trailer(self, name: bytes, value: bytes) -> None:
        self._trailers.append((name, value))

    def trailers(self) -> Mapping[str, str]:
        """Trailer fields, names in lower case; complete when the last of the body was received."""
        return Headers(self._trailers)

    def arrived(self) -> bytes | None:
        """The whole body if it has come in already; then `receive` has nothing more. None if there is more to come, or if it
        was begun to be received."""
        return None if self.cycle is None else self.cycle.take_whole()

    def respond(self, status: int, headers: RawHeaders, body: bytes) -> bool:
        """Writes a whole response at once, as `send` would in two messages; False where it cannot be, and nothing was done.

        headers: ASGI's, in lower case, Content-Length among them where the response has one.
        """
        return self.cycle is not None and self.cycle.respond(status, headers, body)

    def transfer(self, take: Take, room: Room | None = None) -> Transfer | None:
        """Lets the body go past the HTTP parser, straight from the socket to `take`, if need be into the `room` for it.

        Returns None where the body is too small for that, has no length, or was begun to be received: then it comes by
        `receive` alone, as ever.
        """
        return None if self.cycle is None else self._protocol.begin_transfer(self.cycle, take, room)


class _Connection:
    """The transport as a request's cycle sees it: its `close` is the protocol's, which knows how to close."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


class _Event(asyncio.Event):
    """An event without asyncio's queue of waiters, which takes 600 bytes of every connection before anybody waits."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[asyncio.Future[None]] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> Literal[True]:
        if not self._is_set:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            finally:
                self._waiting.remove(waiter)
        return True


class _Flow(FlowControl):
    """uvicorn's, with an event that takes less; nothing of it is left to the parent but the name."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._is_writable = _Event()
        self._is_writable.set()
        self.read_paused = False
        self.write_paused = False

    async def drain(self) -> None:
        await self._is_writable.wait()

    def pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._is_writable.clear()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._is_writable.set()


class _Pipeline(list[Any]):
    """A queue for the few requests that come before their turn; a deque takes 600 bytes of every connection."""

    __slots__ = ()

    def appendleft(self, waiting: object) -> None:
        self.insert(0, waiting)


class _NoParser:
    """In the parser's place from the beginning of a transfer on: what comes after a body that was given up is no request."""

    def feed_data(self, _data: bytes) -> None:
        raise httptools.HttpParserError("what comes after a body that was given up is no request")


_NO_PARSER = cast(httptools.HttpRequestParser, _NoParser())


class UploadProtocol(HttpToolsProtocol):
    """One connection."""

    # With these among them, the attributes of an instance would be more than Python lets instances share a layout for.
    __slots__ = (
        "_body_length",
        "_concat_size",
        "_connection",
        "_exchange",
        "_fixed_headers",
        "_gauge",
        "_head_size",
        "_idle_since",
        "_in_head",
        "_keep_alive",
        "_limits",
        "_lingered",
        "_lingering",
        "_long_head",
        "_long_heads",
        "_refusal",
        "_timer",
        "_unparsed",
        "_zero_copy",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        ours = config if isinstance(config, UploadConfig) else None
        self.limits = ours.limits if ours else Limits()
        self._gauge: ConnectionGauge = ours.gauge if ours else _Gauge()
        self.collector = ours.collector if ours else Collector()
        self._long_heads = ours.long_heads if ours else heads.LongHeads(0)
        self._long_head = False
        self._concat_size = 0
        self._fixed_headers = ours.fixed_headers if ours else {}
        self._connection: _Connection
        self._exchange = Exchange(self)
        self.pipeline = cast("deque[Any]", _Pipeline())
        self._in_head = True
        self._head_size = 0
        self._body_length = b"0"
        self._unparsed = 0
        self._refusal: tuple[int, str, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._keep_alive: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None
        self._lingering = False
        self._lingered = 0
        self._zero_copy = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._connection = _Connection(transport, self._close)
        self._zero_copy = is_supported(transport)
        self._gauge.connections_open = len(self.connections)
        if len(self.connections) > self.limits.connections:
            self._answer(503, "ERR_TOO_MANY_CONNECTIONS", "too many connections; try again later")
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_keep_alive()
        self._release_long_head()
        super().connection_lost(exc)
        self._gauge.connections_open = len(self.connections)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.limits.idle_timeout, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        """The head of a request did not come in time, or a closed connection has lingered long enough."""
        self._timer = None
        if self._lingering or not self._unparsed:
            self.transport.close()
        else:
            self._answer(408, "ERR_READ_TIMEOUT", "the request did not arrive in time")

    # Closing

    def _close(self) -> None:
        """Closes once the client had a chance to read the response.

        Closing a socket with unread bytes makes the kernel reset the connection, and the response may be lost with it. So
        our side is ended first, and a little of what still comes is read and thrown away.
        """
        if self._lingering or self.transport.is_closing():
            return
        if self._in_head and not self._unparsed:
            self.transport.close()
            return
        self._lingering = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self._on_timeout)

    def _discard(self, size: int) -> None:
        self._lingered += size
        if self._lingered > _LINGER_BYTES:
            # Not a byte more; the connection stays until its time is up, so that the response can still be read.
            self.flow.pause_reading()

    def on_response_complete(self) -> None:
        if self._unparsed <= self.limits.head_size:
            self._release_long_head()
        if self._lingering:
            # The response said that it is the last one.
            self.pipeline.clear()
            return
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self._keep_alive is None:
            self._keep_alive = self.loop.call_later(self.timeout_keep_alive, self._close_idle)

    def _unset_keepalive_if_required(self) -> None:
        """Something came: the connection is not idle. Its timer goes on, as most requests are followed by another soon."""
        self._idle_since = None

    def _stop_keep_alive(self) -> None:
        if self._keep_alive is not None:
            self._keep_alive.cancel()
            self._keep_alive = None

    def _close_idle(self) -> None:
        """Closes the connection if no request came for as long as it may be kept open for the next one."""
        self._keep_alive = None
        if self._idle_since is None or self.transport.is_closing():
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._keep_alive = self.loop.call_later(left, self._close_idle)
        else:
            self.transport.close()

    def shutdown(self) -> None:
        if self._lingering:
            self.transport.close()
        else:
            super().shutdown()

    # The request

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            self._discard(len(data))
            return
        self._unparsed += len(data)
        super().data_received(data)
        if (
            self._unparsed > self.limits.head_size
            and not self._may_be_long()
            and not self._lingering
        ):
            self._refuse_size()
            self._answer(*cast("tuple[int, str, str]", self._refusal))
        elif self._in_head and self._unparsed and self._timer is None and not self._lingering:
            self._start_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_size = self._concat_size = 0
        self._body_length = b"0"

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > _MAX_URL:
            self._refusal = (414, "ERR_URI_TOO_LONG", f"the URL is longer than {_MAX_URL} bytes")
            raise _RefusedHead

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value) + 4
        if self._head_size > self.limits.head_size + self._concat_size:
            self._check_head_size(name, value)
        if not self._in_head:
            self._exchange.add_trailer(name, value)
            return
        name = name.lower()
        name, value = KNOWN.get(name, name), KNOWN.get(value, value)
        if name == b"content-length":
            # The parser refuses all that is no number.
            self._body_length = value
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def _check_head_size(self, name: bytes, value: bytes) -> None:
        """Take a final's list of parts out of the count. Raises _RefusedHead for a head that is too long without it."""
        limits = self.limits
        if limits.concat_size and self._in_head:
            fields = (*self.headers, (name.lower(), value))
            self._concat_size = sum(len(n) + len(v) + 4 for n, v in fields if n == heads.FIELD)
        if (
            self._head_size - self._concat_size > limits.head_size
            or self._concat_size > limits.concat_size
            or not self._acquire_long_head()
        ):
            self._refuse_size()
            raise _RefusedHead

    def _may_be_long(self) -> bool:
        """Whether a head that has taken more than an ordinary one, and is not complete, may be that of a final."""
        limits = self.limits
        return (
            self._in_head
            and not self._lingering
            and 0 < self._unparsed - limits.head_size <= limits.concat_size
            and self.parser.get_method() == b"POST"
            and self._acquire_long_head()
        )

    def _acquire_long_head(self) -> bool:
        if not self._long_head and self.limits.concat_size:
            self._long_head = self._long_heads.try_acquire()
            if not self._long_head:
                self._refusal = (
                    503,
                    "ERR_UNAVAILABLE",
                    "too many requests with long lists of parts at once; retry later",
                )
        return self._long_head

    def _release_long_head(self) -> None:
        if self._long_head:
            self._long_head = False
            self._long_heads.release()

    def _refuse_size(self) -> None:
        if self._refusal is None:
            limit = self.limits.head_size
            self._refusal = (
                431,
                "ERR_HEADER_TOO_LARGE",
                f"the header fields take more than {limit} bytes",
            )

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unparsed = self._head_size = self._concat_size = 0
        self._stop_timer()
        http_version = self.parser.get_http_version()
        scope = self._complete_scope(http_version)
        waiting = cast("RequestResponseCycle | None", self.cycle)
        self.cycle = _Cycle(
            self,
            scope,
            cast(asyncio.Transport, self._connection),
            keep_alive=http_version != "1.0" and self.parser.should_keep_alive(),
        )
        self._exchange.cycle = self.cycle
        self.cycle.body_left = int(self._body_length)
        if self.cycle.body_left >= TRANSFER_FROM:
            # What is to go past the parser stays in the socket until the application has accepted it.
            self.flow.pause_reading()
        if waiting is None or waiting.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            # The next request came before the response to this one.
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _complete_scope(self, http_version: str) -> HTTPScope:
        if self.parser.should_upgrade():
            self._check_upgrade()
        scope = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        if http_version != "1.1":
            scope["http_version"] = http_version
        try:
            url = httptools.parse_url(self.url)
            path = url.path.decode("ascii")
        except (httptools.HttpParserInvalidURLError, AttributeError, UnicodeDecodeError):
            self._refusal = (400, "ERR_BAD_REQUEST", "the request's URL is malformed")
            raise _RefusedHead from None
        if "%" in path:
            path = urllib.parse.unquote(path)
        scope["path"] = self.root_path + path
        scope["raw_path"] = self.root_path.encode("ascii") + url.path
        scope["query_string"] = url.query or b""
        self._exchange = Exchange(self)
        extensions: dict[str, Any] = {EXTENSION: self._exchange}
        if self._zero_copy:
            extensions["http.response.zerocopysend"] = {}
        scope["extensions"] = extensions
        return scope

    def _check_upgrade(self) -> None:
        """The parser takes whatever follows an `Upgrade` for another protocol's bytes, a body too: better none than half."""
        for name, value in self.headers:
            if name == b"transfer-encoding" or (
                name == b"content-length" and value.strip() != b"0"
            ):
                self._refusal = (
                    400,
                    "ERR_BAD_REQUEST",
                    "Upgrade cannot be combined with a body here",
                )
                raise _RefusedHead

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        cast(_Cycle, self.cycle).body_left -= len(body)
        super().on_body(body)

    # Bodies past the parser

    def begin_transfer(
        self, cycle: _Cycle, take: Take, room: Room | None = None
    ) -> Transfer | None:
        """See `Exchange.transfer`."""
        if (
            cycle is not self.cycle
            or cycle.body_left < TRANSFER_FROM - len(cycle.body)
            or cycle.body_left <= 0
            or cycle.disconnected
            or cycle.began_to_receive
            or self._lingering
            or self.transport.is_closing()
        ):
            return None
        # Thousands of bodies may be under way for hours: what they do not need goes. That is the timer for the next request,
        # the fields as they came, which the application has read, and the parser, which only waits for the body.
        self._stop_keep_alive()
        cycle.scope["headers"] = self.headers = []
        self.parser = _NO_PARSER
        cycle.continue_if_expected()
        parsed, cycle.body = bytes(cycle.body), bytearray()
        transfer = Transfer(self, cycle.body_left, parsed, take, room)
        self.flow.pause_reading()
        self.transport.set_protocol(transfer)
        transfer.begin()
        return transfer

    def end_transfer(self, left: int) -> None:
        """The transport is the parser's again; `left` bytes of the body were not received."""
        cycle = cast(_Cycle, self.cycle)
        cycle.body_left = left
        if self.transport.is_closing():
            return
        self.flow.pause_reading()
        self.transport.set_protocol(Heads(self))
        if not left:
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.on_message_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        self._unparsed = 0
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Upgrades are ignored, as RFC 9110, section 7.8 allows; clients that try are many, and no news."""

    # Responses without the application

    def send_400_response(self, msg: str) -> None:
        status, code, message = self._refusal or (
            400,
            "ERR_BAD_REQUEST",
            "the request is not valid HTTP",
        )
        self._answer(status, code, message)

    def _answer(self, status: int, code: str, message: str) -> None:
        if self.transport.is_closing():
            return
        answering = cast("RequestResponseCycle | None", self.cycle)
        if answering is not None and not answering.response_complete:
            # The application is answering an earlier request, or this one: nobody could tell the two responses apart.
            answering.disconnected = True
            answering.message_event.set()
            self.transport.close()
            return
        body = f"{code}: {message}\n".encode()
        fields = {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **({"Retry-After": "5"} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}),
            **self._fixed_headers,
        }
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        head += [f"{name}: {value}" for name, value in fields.items()]
        self.transport.write("\r\n".join([*head, "", ""]).encode("latin-1") + body)
        self._unparsed = self._unparsed or 1
        self._close()


def _head(status: int, headers: Iterable[tuple[bytes, bytes]], length: int) -> tuple[bytes, bool]:
    """The head of a response with a body of `length` bytes, but for its last line, and whether it says that it is the last one.

    Empty for one that is not quite ordinary.
    """
    parts = [STATUS_LINE[status]]
    lines = 1
    closes = False
    for name, value in headers:
        start = _STARTS.get(name) or _start_of(name)
        if start is None:
            if name == b"connection" and value == b"close":
                closes = True
            elif name != b"content-length" or value != b"%d" % length:
                return b"", False
            start = name + b": "
        parts += (start, value, b"\r\n")
        lines += 1
    head = b"".join(parts)
    if len(head) - len(head.translate(None, _CONTROLS)) != 2 * lines:
        return b"", False
    return head, closes


_STARTS: dict[bytes, bytes] = {}
"""How lines begin, by the name of the field: of fields that say nothing of the connection, and whose names can be names."""
_MOST_STARTS = 256
_OF_THE_CONNECTION = frozenset(
    {b"content-length", b"transfer-encoding", b"trailer", b"upgrade", b"connection"}
)


def _start_of(name: bytes) -> bytes | None:
    if name in _OF_THE_CONNECTION or HEADER_RE.search(name) is not None:
        return None
    start = name + b": "
    if len(_STARTS) < _MOST_STARTS:
        _STARTS[name] = start
    return start


_CONTROLS = bytes([*range(9), *range(10, 32), 127])
"""Characters that no field may have in it, except for the two at its end."""


class _Cycle(RequestResponseCycle):
    """One request and its response. body_left: bytes of the body that were not parsed yet, where its length is known."""

    def __init__(
        self,
        protocol: UploadProtocol,
        scope: HTTPScope,
        transport: asyncio.Transport,
        *,
        keep_alive: bool,
    ) -> None:
        super().__init__(
            scope,
            transport,
            protocol.flow,
            protocol.logger,
            protocol.access_logger,
            False,
            protocol.server_state.default_headers,
            _Event(),
            protocol.expect_100_continue,
            keep_alive,
            protocol.on_response_complete,
        )
        self._protocol = protocol
        self.body_left = 0
        self.began_to_receive = False

    async def run_asgi(self, app: ASGI3Application) -> None:
        await super().run_asgi(app)
        # The scope leads back here. As a cycle of references, what a client sent would stay until the collector comes, which
        # counts objects and not bytes.
        self.scope["extensions"] = {}

    def continue_if_expected(self) -> None:
        """Sends the 100 that a client waits for before it sends its body."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False

    def take_whole(self) -> bytes | None:
        """See `Exchange.arrived`."""
        if self.began_to_receive or self.more_body or self.disconnected or not self.body:
            return None
        self.began_to_receive = True
        body, self.body = bytes(self.body), bytearray()
        return body

    def respond(self, status: int, headers: RawHeaders, body: bytes) -> bool:
        """See `Exchange.respond`."""
        if self.response_started or self.disconnected or self.flow.write_paused:
            return False
        head, closes = _head(status, chain(self.default_headers, headers), len(body))
        if not head:
            return False
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            head += b"connection: close\r\n"
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(b"%b\r\n%b" % (head, body))
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
        return True

    async def receive(self) -> ASGIReceiveEvent:
        self.began_to_receive = True
        if self.disconnected and self.body and not self.response_complete:
            # What arrived before the connection went is kept: it comes first.
            message: HTTPRequestEvent = {
                "type": "http.request",
                "body": bytes(self.body),
                "more_body": self.more_body,
            }
            self.body = bytearray()
            return message
        message_or_end = await super().receive()
        if message_or_end["type"] == "http.disconnect" and self.body and not self.response_complete:
            return await self.receive()
        return message_or_end

    async def send(self, message: ASGISendEvent) -> None:
        await self._wait_for_reader()
        # An extension of ASGI that uvicorn's types do not know.
        if cast(str, message["type"]) == "http.response.zerocopysend":
            await self._send_file(cast("_FileMessage", message))
        else:
            await super().send(message)

    async def _wait_for_reader(self) -> None:
        """Returns when the client has taken most of what was sent so far; one that takes nothing for too long is given up."""
        if not self.flow.write_paused or self.disconnected:
            return
        try:
            async with asyncio.timeout(self._protocol.limits.idle_timeout):
                await self.flow.drain()
        except TimeoutError:
            self._protocol.transport.abort()
            self.disconnected = True

    async def _send_file(self, message: _FileMessage) -> None:
        """ASGI "Zero Copy Send"; `count` and `offset` in bytes, both given."""
        protocol = self._protocol
        if not self.disconnected:
            sent = await sendfile(
                protocol.loop,
                protocol.transport,
                message["file"].fileno(),
                message["offset"],
                message["count"],
                idle_timeout=protocol.limits.idle_timeout,
            )
            self.expected_content_length -= sent
            if sent < message["count"]:
                self.disconnected = True
        await super().send(
            {
                "type": "http.response.body",
                "body": b"",
                "more_body": message.get("more_body", False),
            }
        )
