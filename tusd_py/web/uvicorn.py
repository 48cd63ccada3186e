"""uvicorn's HTTP protocol with what an upload server needs besides.

It adds to `HttpToolsProtocol`: trailer fields of requests; bytes that arrived are handed over before the news that the
connection is gone; limits on heads and connections, and a time-out for heads; a close that lets the client read the response
although its body was not taken; files by sendfile (the ASGI extension "http.response.zerocopysend"); a shutdown that ends
bodies at once. It knows HTTP and nothing of uploads.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, NotRequired, Protocol, TypedDict, cast

import httptools
import uvicorn
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent, HTTPRequestEvent, HTTPScope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tusd_py.web.sendfile import is_supported, sendfile

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
    """What connections may cost: their number, bytes of a request's head, seconds for it to come in, and without progress."""

    connections: int = 10_000
    head_size: int = 64 * 1024
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

    __slots__ = ("_trailers",)

    def __init__(self) -> None:
        self._trailers: dict[str, str] = {}

    def add_trailer(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t")
        self._trailers[key] = f"{self._trailers[key]}, {text}" if key in self._trailers else text

    def trailers(self) -> Mapping[str, str]:
        """Trailer fields, names in lower case; complete when the last of the body was received."""
        return self._trailers


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


class UploadProtocol(HttpToolsProtocol):
    """One connection."""

    # With these among them, the attributes of an instance would be more than Python lets instances share a layout for.
    __slots__ = (
        "_connection",
        "_exchange",
        "_fixed_headers",
        "_gauge",
        "_head_size",
        "_in_head",
        "_limits",
        "_lingered",
        "_lingering",
        "_refusal",
        "_timer",
        "_unparsed",
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
        self._limits = ours.limits if ours else Limits()
        self._gauge: ConnectionGauge = ours.gauge if ours else _Gauge()
        self._fixed_headers = ours.fixed_headers if ours else {}
        self._connection: _Connection
        self._exchange = Exchange()
        self._in_head = True
        self._head_size = 0
        self._unparsed = 0
        self._refusal: tuple[int, str, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._lingering = False
        self._lingered = 0

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connection = _Connection(transport, self._close)
        self._gauge.connections_open = len(self.connections)
        if len(self.connections) > self._limits.connections:
            self._answer(503, "ERR_TOO_MANY_CONNECTIONS", "too many connections; try again later")
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self._gauge.connections_open = len(self.connections)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self._limits.idle_timeout, self._on_timeout)

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
        if self._lingering:
            # The response said that it is the last one.
            self.pipeline.clear()
        else:
            super().on_response_complete()

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
        if self._unparsed > self._limits.head_size and not self._lingering:
            self._refuse_size()
            self._answer(*cast("tuple[int, str, str]", self._refusal))
        elif self._in_head and self._unparsed and self._timer is None and not self._lingering:
            self._start_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_size = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > _MAX_URL:
            self._refusal = (414, "ERR_URI_TOO_LONG", f"the URL is longer than {_MAX_URL} bytes")
            raise _RefusedHead

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value) + 4
        if self._head_size > self._limits.head_size:
            self._refuse_size()
            raise _RefusedHead
        if self._in_head:
            super().on_header(name, value)
        else:
            self._exchange.add_trailer(name, value)

    def _refuse_size(self) -> None:
        if self._refusal is None:
            limit = self._limits.head_size
            self._refusal = (
                431,
                "ERR_HEADER_TOO_LARGE",
                f"the header fields take more than {limit} bytes",
            )

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unparsed = self._head_size = 0
        self._stop_timer()
        http_version = self.parser.get_http_version()
        scope = self._complete_scope(http_version)
        waiting = cast("RequestResponseCycle | None", self.cycle)
        self.cycle = _Cycle(
            protocol=self,
            scope=scope,
            transport=cast(asyncio.Transport, self._connection),
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=_Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=http_version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
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
        self._exchange = Exchange()
        extensions: dict[str, Any] = {EXTENSION: self._exchange}
        if is_supported(self.transport):
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
        super().on_body(body)

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


class _Cycle(RequestResponseCycle):
    """One request and its response."""

    def __init__(self, *, protocol: UploadProtocol, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._protocol = protocol

    async def receive(self) -> ASGIReceiveEvent:
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
        # An extension of ASGI that uvicorn's types do not know.
        if cast(str, message["type"]) == "http.response.zerocopysend":
            await self._send_file(cast("_FileMessage", message))
        else:
            await super().send(message)

    async def _send_file(self, message: _FileMessage) -> None:
        """ASGI "Zero Copy Send"; `count` and `offset` in bytes, both given."""
        protocol = self._protocol
        if not self.disconnected:
            if self.flow.write_paused:
                await self.flow.drain()
            sent = await sendfile(
                protocol.loop,
                protocol.transport,
                message["file"].fileno(),
                message["offset"],
                message["count"],
                idle_timeout=protocol._limits.idle_timeout,
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
