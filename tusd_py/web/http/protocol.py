"""uvicorn's HTTP protocol with what an upload server needs besides.

It adds to `HttpToolsProtocol`: trailer fields of requests; bytes that arrived are handed over before the news that the
connection is gone; limits on heads, connections and pipelined requests, and a time-out for heads; checks of a head that the
parser leaves out; answers to clients that have ended their sending side; a close that lets the client read the response
although its body was not taken; files by sendfile (the ASGI extension "http.response.zerocopysend"); a shutdown that ends
bodies at once. It knows HTTP and nothing of uploads.
"""

from __future__ import annotations

import asyncio
import ssl
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
from tusd_py.web.http import heads
from tusd_py.web.http.direct_body import TRANSFER_FROM, Collector, Heads, Room, Take, Transfer
from tusd_py.web.http.framing import BAD_REQUEST, Refusal, authority_of, check_codings, check_host
from tusd_py.web.http.linger import Linger
from tusd_py.web.http.sendfile import is_supported, sendfile
from tusd_py.web.http.tls import TlsHandshake

EXTENSION = "tusd_py"
"""Name of our ASGI extension: `scope["extensions"]["tusd_py"]` is the request's `Exchange`."""

_MAX_URL = 16 * 1024
_MAX_WAITING = 32
"""Pipelined requests that may wait for their turn. The connection of a client that sends more ends with their responses."""
_ORIGIN_BYTES = 64 * 1024
"""How much more of a head that is too large is read, and thrown away, to learn from which origin its page comes."""
_ORIGIN_SECONDS = 1.0
_REFUSAL_SECONDS = 2.0
"""How long a connection too many has to say what it wants, as HEAD is refused otherwise than the rest."""
_TOO_LONG = Refusal(414, "ERR_URI_TOO_LONG", f"the URL is longer than {_MAX_URL} bytes")
_READ_TIMEOUT = Refusal(408, "ERR_READ_TIMEOUT", "the request did not arrive in time")
_TOO_MANY = Refusal(503, "ERR_TOO_MANY_CONNECTIONS", "too many connections; try again later")
_TOO_MANY_LONG_HEADS = Refusal(
    503, "ERR_UNAVAILABLE", "too many requests with long lists of parts at once; retry later"
)
_BUSY = Refusal(423, "ERR_UPLOAD_LOCKED", "the server cannot tell now; try again later")
"""What HEAD gets instead: to whatever else clients answer by sending the whole file anew."""

RefusalHeaders = Callable[["bytes | None", bool], RawHeaders]
"""Fields of a response that does not come from the application: by the value of `Origin`, None without one, and whether the
head came in whole, so that None tells that there was none."""


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

    @property
    def most_accepted(self) -> int:
        """Connections that are there at the same time at most, those among them that are being refused."""
        return self.connections + 16 + self.connections // 16


def _no_headers(_origin: bytes | None, _whole: bool) -> RawHeaders:
    return []


class UploadConfig(uvicorn.Config):
    """uvicorn's configuration with our limits. tls: there after `load`, where there is a certificate."""

    def __init__(
        self,
        app: Any,
        *,
        limits: Limits,
        gauge: ConnectionGauge | None = None,
        refusal_headers: RefusalHeaders = _no_headers,
        **kwargs: Any,
    ) -> None:
        http: type[asyncio.Protocol] = (
            TlsHandshake if kwargs.get("ssl_certfile") else UploadProtocol
        )
        super().__init__(app, http=http, ws="none", log_config=None, **kwargs)
        self.limits = limits
        self.collector = Collector()
        self.long_heads = heads.LongHeads(limits.concat_size)
        self.gauge: ConnectionGauge = gauge or _Gauge()
        self.refusal_headers = refusal_headers
        self.tls: ssl.SSLContext | None = None

    def load(self) -> None:
        super().load()
        # The server listens without TLS; see `TlsHandshake`.
        self.tls, self.ssl = self.ssl, None

    def make_protocol(
        self, state: ServerState, app_state: dict[str, Any], loop: asyncio.AbstractEventLoop
    ) -> UploadProtocol:
        """The protocol of one connection."""
        return UploadProtocol(self, state, app_state, loop)


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
    """uvicorn's, with an event that takes less; nothing of it is left to the parent but the name.

    held: while it is set, nothing is read whoever asks for it. raw: the transport below TLS, which must not read either, as TLS
    would end both directions when it saw the end of the one.
    """

    def __init__(self, transport: asyncio.Transport, raw: asyncio.Transport | None = None) -> None:
        self._transport = transport
        self._raw = raw
        self._is_writable = _Event()
        self._is_writable.set()
        self.read_paused = False
        self.write_paused = False
        self.held = False

    async def drain(self) -> None:
        await self._is_writable.wait()

    def pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self._transport.pause_reading()
            if self._raw is not None:
                self._raw.pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused and not self.held:
            self.read_paused = False
            if self._raw is not None:
                self._raw.resume_reading()
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._is_writable.clear()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._is_writable.set()


class _NoParser:
    """In the parser's place from the beginning of a transfer on: what comes after a body that was given up is no request."""

    def feed_data(self, _data: bytes) -> None:
        raise httptools.HttpParserError("what comes after a body that was given up is no request")


_NO_PARSER = cast(httptools.HttpRequestParser, _NoParser())


class _FramedBody:
    """The parser's callbacks for a message of which another parser has read the head: only the body is told of."""

    def __init__(self, protocol: UploadProtocol) -> None:
        self._protocol = protocol
        self._in_head = True
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if not self._in_head:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._in_head:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._in_head:
            self._in_head = False
        else:
            self._protocol.on_headers_complete()


def _make_parser(callbacks: object) -> httptools.HttpRequestParser:
    parser = httptools.HttpRequestParser(callbacks)
    # So that the first of pipelined requests is answered although it is the last.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


class UploadProtocol(HttpToolsProtocol):
    """One connection.

    Requests are answered one after the other: `_answered` is the one whose turn it is, `_waiting` those behind it, `cycle` the
    last that was read, whose body may still be coming in.
    """

    flow: _Flow

    # With these among them, the attributes of an instance would be more than Python lets instances share a layout for.
    __slots__ = (
        "_answered",
        "_body_length",
        "_codings",
        "_concat_size",
        "_connection",
        "_exchange",
        "_final_refusal",
        "_framing",
        "_gauge",
        "_head_is_whole",
        "_head_size",
        "_hosts",
        "_idle_since",
        "_in_head",
        "_input_over",
        "_keep_alive",
        "_limits",
        "_linger",
        "_long_head",
        "_long_heads",
        "_refusal",
        "_refusal_headers",
        "_refused_at",
        "_timer",
        "_too_many",
        "_unparsed",
        "_waiting",
        "_zero_copy",
        "raw_transport",
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
        self._refusal_headers = ours.refusal_headers if ours else _no_headers
        self.raw_transport: asyncio.Transport | None = None
        self._connection: _Connection
        self._exchange = Exchange(self)
        # Its place is taken by a list, as a deque takes 600 bytes of every connection.
        self.pipeline = cast("deque[Any]", ())
        self._answered: _Cycle | None = None
        self._waiting: list[_Cycle] = []
        self.url = b""
        self.headers = []
        self._in_head = True
        self._head_is_whole = False
        self._head_size = 0
        self._body_length = b"0"
        self._hosts: tuple[bytes, ...] = ()
        self._codings: tuple[bytes, ...] = ()
        self._framing = b""
        self._unparsed = 0
        self._refusal: Refusal | None = None
        self._refused_at = 0
        self._final_refusal: Refusal | None = None
        self._input_over = False
        self._too_many = False
        self._timer: asyncio.TimerHandle | None = None
        self._keep_alive: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None
        self._linger: Linger | None = None
        self._zero_copy = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self.raw_transport)
        self._connection = _Connection(transport, self._close)
        self._zero_copy = is_supported(transport)
        self._gauge.connections_open = len(self.connections)
        if len(self.connections) > self.limits.most_accepted:
            # Too many even of those that are being refused: nobody is waited for.
            self._input_over = True
            self._write_refusal(_TOO_MANY)
            transport.close()
        elif len(self.connections) > self.limits.connections:
            self._too_many = True
            self._start_timer(min(_REFUSAL_SECONDS, self.limits.idle_timeout))
        else:
            self._start_timer(self.limits.idle_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_keep_alive()
        self._release_long_head()
        if self._linger is not None:
            self._linger.cancel()
        for cycle in self._to_answer():
            cycle.disconnected = True
            cycle.message_event.set()
        self._waiting.clear()
        super().connection_lost(exc)
        self._gauge.connections_open = len(self.connections)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more, but still reads: what it has asked for is answered. False closes the transport."""
        if self._linger is not None or self.raw_transport is not None:
            # TLS cannot go on in one direction alone.
            return False
        if not self._in_head and self._waiting:
            # The last request has come in part only, and those before it have not been answered yet.
            self._waiting.pop()
        elif not self._in_head:
            return False
        to_answer = self._to_answer()
        if not to_answer:
            return False
        self._stop_timer()
        self._end_input()
        to_answer[-1].keep_alive = False
        return True

    def _to_answer(self) -> list[_Cycle]:
        """Requests whose responses are not complete, in their order."""
        answered = self._answered
        if answered is None or answered.response_complete:
            return []
        return [answered, *self._waiting]

    def _end_input(self) -> None:
        """From now on nothing is read as a request."""
        self._input_over = True
        self._in_head = True
        self._unparsed = 0

    def _start_timer(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        """The head of a request did not come in time, or not to its end although it is refused anyway."""
        self._timer = None
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._too_many:
            self._refuse(_TOO_MANY)
        elif not self._unparsed:
            self.transport.close()
        else:
            self._refuse(_READ_TIMEOUT)

    # Closing

    def _close(self) -> None:
        """Closes once the client had a chance to read the response."""
        if self._linger is not None or self.transport.is_closing():
            return
        self._stop_timer()
        self._unset_keepalive_if_required()
        self.flow.held = False
        if self._in_head and not self._unparsed:
            self.flow.resume_reading()
            self.transport.close()
            return
        cycle = cast("_Cycle | None", self.cycle)
        left = None
        if not self._in_head and cycle is not None and cycle.body_left > 0:
            left = cycle.body_left
        self._end_input()
        self._linger = Linger(self.loop, self.transport, self.flow, left)

    def on_response_complete(self) -> None:
        if self._unparsed <= self.limits.head_size:
            self._release_long_head()
        if self._linger is not None:
            # The response said that it is the last one.
            self._waiting.clear()
            return
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._waiting:
            self._start(self._waiting.pop(0))
            self._hold_reading_if_needed()
            if self._final_refusal is None and self._may_read():
                self.flow.resume_reading()
            return
        self.flow.held = False
        if self._final_refusal is not None:
            self._answer(self._final_refusal)
            return
        self.flow.resume_reading()
        self._begin_idle()

    def _start(self, cycle: _Cycle) -> None:
        self._answered = cycle
        self._start_asgi_task(cycle, self.app)

    def _hold_reading_if_needed(self) -> None:
        """Nothing is read while a request waits for its turn, nor over TLS while one that came in whole is answered."""
        self.flow.held = bool(self._waiting) or (self.raw_transport is not None and self._in_head)
        if self.flow.held:
            self.flow.pause_reading()

    def _may_read(self) -> bool:
        """Whether what comes next may be read at once: a large body stays in the socket until the application accepts it."""
        return self._in_head or cast(_Cycle, self.cycle).body_left < TRANSFER_FROM

    def _begin_idle(self) -> None:
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
        if self._linger is not None:
            self.transport.close()
        else:
            super().shutdown()

    # The request

    def data_received(self, data: bytes) -> None:
        if self._linger is not None:
            self._linger.discard(len(data))
        elif not self._input_over:
            self._read(data)

    def _read(self, data: bytes) -> None:
        self._unparsed += len(data)
        self._idle_since = None
        self._feed(data)
        if self._reads_no_more():
            return
        cycle = cast("_Cycle | None", self.cycle)
        if self._refusal is not None or (
            self._unparsed > self.limits.head_size and not self._may_be_long()
        ):
            self._refuse_unfinished_head()
        elif self._in_head and self._unparsed:
            if self._timer is None:
                self._start_timer(self.limits.idle_timeout)
        elif cycle is not None and cycle.response_complete:
            # The rest of a body that was not taken.
            self._begin_idle()

    def _reads_no_more(self) -> bool:
        return self._input_over or self.transport.is_closing()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # Upgrades are ignored (RFC 9110, section 7.8), but the parser stops at what follows the head.
                if self.parser.get_method() == b"CONNECT":
                    self._end_input()
                    self._unparsed = 1
                    return
                data = data[upgrade.args[0] :]
                self.parser = self._parser_behind_upgrade()
            except httptools.HttpParserError:
                self._refuse(self._refusal or BAD_REQUEST)
                return
            else:
                return

    def _parser_behind_upgrade(self) -> httptools.HttpRequestParser:
        if not self._framing:
            return _make_parser(self)
        parser = _make_parser(_FramedBody(self))
        parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % self._framing)
        self._framing = b""
        return parser

    def _refuse_unfinished_head(self) -> None:
        """Refuses what has come in part, but waits a little for the origin of the page that is to read the refusal."""
        if self._refusal is None:
            self._refusal = self._too_large()
        if not self._refused_at:
            self._refused_at = max(self._unparsed, 1)
            self._stop_timer()
            self._start_timer(_ORIGIN_SECONDS)
        if (
            not self._in_head
            or self._unparsed > self._refused_at + _ORIGIN_BYTES
            # Waiting would add up, as many connections are refused for that at once.
            or self._refusal is _TOO_MANY_LONG_HEADS
        ):
            self._stop_timer()
            self._refuse(self._refusal)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_size = self._concat_size = 0
        self._body_length = b"0"
        self._hosts = self._codings = ()

    def on_url(self, url: bytes) -> None:
        if self._refusal is None:
            super().on_url(url)
            if len(self.url) > _MAX_URL:
                self._refusal = _TOO_LONG

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value) + 4
        if not self._in_head:
            if self._head_size > self.limits.head_size:
                self._refusal = self._too_large()
                raise _RefusedHead
            self._exchange.add_trailer(name, value)
            return
        name = name.lower()
        if self._refusal is None and self._head_size > self.limits.head_size + self._concat_size:
            self._refusal = self._check_head_size(name, value)
        if self._refusal is not None and name != b"origin":
            return
        name, value = KNOWN.get(name, name), KNOWN.get(value, value)
        if name == b"host":
            self._hosts += (value,)
        elif name == b"content-length":
            # The parser refuses all that is no number.
            self._body_length = value
        elif name == b"transfer-encoding":
            self._codings += (value,)
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def _check_head_size(self, name: bytes, value: bytes) -> Refusal | None:
        """Take a final's list of parts out of the count; the refusal of a head that is too long without it."""
        limits = self.limits
        if limits.concat_size and not self._concat_size:
            # The first of them alone: a list in several fields is refused anyway, and thousands would be counted with each.
            self._concat_size = next(
                (
                    len(n) + len(v) + 4
                    for n, v in (*self.headers, (name, value))
                    if n == heads.FIELD
                ),
                0,
            )
        if (
            self._head_size - self._concat_size > limits.head_size
            or self._concat_size > limits.concat_size
        ):
            return self._too_large()
        return None if self._acquire_long_head() else _TOO_MANY_LONG_HEADS

    def _may_be_long(self) -> bool:
        """Whether a head that has taken more than an ordinary one, and is not complete, may be that of a final."""
        limits = self.limits
        if not (
            self._in_head
            and 0 < self._unparsed - limits.head_size <= limits.concat_size
            and self.parser.get_method() == b"POST"
        ):
            return False
        if not self._acquire_long_head():
            self._refusal = _TOO_MANY_LONG_HEADS
        return self._long_head

    def _acquire_long_head(self) -> bool:
        if not self._long_head and self.limits.concat_size:
            self._long_head = self._long_heads.try_acquire()
        return self._long_head

    def _release_long_head(self) -> None:
        if self._long_head:
            self._long_head = False
            self._long_heads.release()

    def _too_large(self) -> Refusal:
        limit = self.limits.head_size
        return Refusal(
            431, "ERR_HEADER_TOO_LARGE", f"the header fields take more than {limit} bytes"
        )

    def on_headers_complete(self) -> None:
        self._head_is_whole = True
        http_version = self.parser.get_http_version()
        self._refuse_head(self._refusal or self._head_problem(http_version))
        scope = self._complete_scope(http_version)
        if self._waiting:
            self._refuse_if_too_many_wait()
        self._in_head = False
        self._unparsed = self._head_size = self._concat_size = 0
        self._stop_timer()
        keep_alive = http_version != "1.0" and self.parser.should_keep_alive()
        cycle = _Cycle(
            self,
            scope,
            cast(asyncio.Transport, self._connection),
            keep_alive=keep_alive and scope["method"] != "CONNECT",
        )
        self.cycle = cycle
        self._exchange.cycle = cycle
        cycle.body_left = int(self._body_length)
        if not self._may_read():
            self.flow.pause_reading()
        if self._answered is None or self._answered.response_complete:
            self._start(cycle)
        else:
            # The next request came before the response to the one before it.
            self._waiting.append(cycle)
            self._hold_reading_if_needed()

    def _refuse_if_too_many_wait(self) -> None:
        if len(self._waiting) >= _MAX_WAITING:
            self._stop_timer()
            self._end_input()
            self._unparsed = 1
            self._waiting[-1].keep_alive = False
            raise _RefusedHead

    def _refuse_head(self, problem: Refusal | None) -> None:
        if problem is not None:
            self._refusal = problem
            raise _RefusedHead

    def _head_problem(self, http_version: str) -> Refusal | None:
        if self._too_many:
            self._too_many = len(self.connections) > self.limits.connections
            if self._too_many:
                return _TOO_MANY
        return check_host(self._hosts, http_version) or check_codings(self._codings, http_version)

    def _complete_scope(self, http_version: str) -> HTTPScope:
        scope = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        if http_version != "1.1":
            scope["http_version"] = http_version
        if self.parser.should_upgrade():
            self._framing = self._framing_of_body()
        authority = b"" if self.url.startswith(b"/") else authority_of(self.url)
        try:
            if authority is None:
                raise httptools.HttpParserInvalidURLError("not a URL of HTTP")
            url = httptools.parse_url(self.url)
            path = url.path.decode("ascii")
        except (httptools.HttpParserInvalidURLError, AttributeError, UnicodeDecodeError):
            self._refusal = Refusal(400, "ERR_BAD_REQUEST", "the request's URL is malformed")
            raise _RefusedHead from None
        if authority:
            self.headers[:] = [
                (name, authority if name == b"host" else value) for name, value in self.headers
            ]
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

    def _framing_of_body(self) -> bytes:
        """The field that tells where the body ends; empty without a body."""
        if self._codings:
            return b"Transfer-Encoding: chunked"
        return b"" if not int(self._body_length) else b"Content-Length: " + self._body_length

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
            or self._linger is not None
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
        if left:
            # Nobody can tell any more where the next request begins.
            cycle.keep_alive = False
        else:
            self.parser = _make_parser(self)
            self.on_message_complete()

    def on_message_complete(self) -> None:
        if self._framing:
            # Behind an `Upgrade` the parser takes the end of the head for that of the message.
            return
        self._forget_head()
        self._in_head = True
        self._unparsed = 0
        super().on_message_complete()
        if self.raw_transport is not None and self._to_answer():
            self._hold_reading_if_needed()

    def _forget_head(self) -> None:
        """What comes next is no longer told by the fields of this request. They stay in its scope."""
        self._head_is_whole = False
        self.headers = []
        self.url = b""

    # Responses without the application

    def _refuse(self, refusal: Refusal) -> None:
        """Answers with a refusal when its turn comes, and closes; nothing more is read as a request."""
        if self._input_over or self.transport.is_closing():
            return
        to_answer = self._to_answer()
        if self._in_head and not to_answer:
            self._answer(refusal)
        elif self._in_head or len(to_answer) > 1:
            if not self._in_head:
                # The request that came in part only is the one that is refused.
                self._waiting.pop()
            self._stop_timer()
            self._end_input()
            self._final_refusal = refusal
            self.flow.pause_reading()
        elif to_answer:
            # In the middle of a body that is being taken: whoever takes it learns that it has ended.
            to_answer[0].disconnected = True
            to_answer[0].message_event.set()
            self.transport.close()
        else:
            # The response to the request was sent already.
            self._close()

    def _answer(self, refusal: Refusal) -> None:
        if self.transport.is_closing():
            return
        self._write_refusal(refusal)
        # What was read of the head goes, although the connection stays for a while.
        self.parser, self.headers, self.url = _NO_PARSER, [], b""
        self._end_input()
        self._unparsed = 1
        self._close()

    def _write_refusal(self, refusal: Refusal) -> None:
        is_head = bool(self.url) and self.parser.get_method() == b"HEAD"
        if is_head and refusal is _TOO_MANY:
            refusal = _BUSY
        body = b"" if is_head else f"{refusal.code}: {refusal.message}\n".encode()
        origins = [value for name, value in self.headers if name == b"origin"]
        fields: RawHeaders = [(b"connection", b"close")]
        if not is_head:
            fields += [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", b"%d" % len(body)),
            ]
        if refusal.status in (423, 503):
            fields.append((b"retry-after", b"5"))
        fields += self._refusal_headers(
            b", ".join(origins) if origins else None, self._head_is_whole
        )
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[refusal.status], lines, body))

    def fields_of_failure(self, scope: HTTPScope) -> RawHeaders:
        """Fields of the response to a request in which the application failed."""
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        return self._refusal_headers(b", ".join(origins) if origins else None, True)


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

    async def send_500_response(self) -> None:
        body = b"ERR_INTERNAL_SERVER_ERROR: internal server error\n"
        headers: RawHeaders = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *self._protocol.fields_of_failure(self.scope),
        ]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

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
