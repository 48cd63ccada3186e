"""HTTP/1.1 for uploads: one connection as an `asyncio.Protocol` on httptools' parser, for uvicorn's `http=`.

Requests become `Exchange` objects, which are answered one after the other. Beside what every server does it has: trailer
fields; limits on heads, connections and pipelined requests, and a time-out for heads; checks of a head that the parser leaves
out; answers to clients that have ended their sending side; a close that lets the client read the response although its body was
not read; bodies that bypass the parser; a shutdown that ends bodies at once. It knows HTTP and nothing of uploads.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from typing import Any, Protocol, cast

import httptools
import uvicorn
from starlette.types import Scope

from tusd_py.protocol.headers import KNOWN, RawHeaders
from tusd_py.web.http import heads
from tusd_py.web.http.admission import Admission, admission
from tusd_py.web.http.connection_config import ConnectionConfig
from tusd_py.web.http.direct_body import TRANSFER_FROM, Heads, Room, Take, Transfer
from tusd_py.web.http.exchange import EXTENSION, Exchange
from tusd_py.web.http.flow import FlowControl
from tusd_py.web.http.framing import (
    BAD_REQUEST,
    OLD_VERSIONS,
    Refusal,
    authority_of,
    check_codings,
    check_host,
)
from tusd_py.web.http.linger import Flush, Linger
from tusd_py.web.http.response_head import serialize
from tusd_py.web.http.sendfile import is_supported
from tusd_py.web.http.stalls import unsent, untaken

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


class ServerState(Protocol):
    """What uvicorn's server shares with its connections."""

    total_requests: int
    connections: set[Any]
    tasks: set[asyncio.Task[None]]
    default_headers: RawHeaders


class _RefusedHead(Exception):
    """Ends the parsing of a head that is refused."""


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


class UploadProtocol(asyncio.Protocol):
    """One connection.

    Requests are answered one after the other: `_answered` is the one whose turn it is, `_waiting` those behind it, `_exchange`
    the last that was read, whose body may still be coming in.
    """

    __slots__ = (
        "_answered",
        "_app_state",
        "_body_length",
        "_codings",
        "_concat_size",
        "_config",
        "_counters",
        "_exchange",
        "_expects_continue",
        "_final_refusal",
        "_framing",
        "_head_is_whole",
        "_head_size",
        "_headers",
        "_hosts",
        "_idle_since",
        "_in_head",
        "_input_over",
        "_keep_alive",
        "_linger",
        "_long_head",
        "_long_heads",
        "_parser",
        "_refusal",
        "_refusal_headers",
        "_refused_at",
        "_running",
        "_state",
        "_timer",
        "_too_many",
        "_unparsed",
        "_url",
        "_waiting",
        "_zero_copy",
        "client",
        "collector",
        "flow",
        "limits",
        "loop",
        "raw_transport",
        "scheme",
        "server",
        "transport",
    )

    transport: asyncio.Transport
    flow: FlowControl

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        ours: ConnectionConfig = getattr(config, "connection", None) or ConnectionConfig()
        self.loop = _loop or asyncio.get_running_loop()
        self.limits = ours.limits
        self.collector = ours.collector
        self.raw_transport: asyncio.Transport | None = None
        self.server: tuple[str, int | None] | None = None
        self.client: tuple[str, int] | None = None
        self.scheme = "http"
        self._config = config
        self._app_state = app_state
        self._state = server_state
        self._counters = ours.counters
        self._refusal_headers = ours.refusal_headers
        self._long_heads = ours.long_heads
        self._long_head: heads.LongHead | None = None
        self._parser = _make_parser(self)
        self._exchange: Exchange | None = None
        self._answered: Exchange | None = None
        self._running = 0
        # A list, as a deque takes 600 bytes of every connection.
        self._waiting: list[Exchange] = []
        self._head_is_whole = False
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
        self._linger: Linger | Flush | None = None
        self._zero_copy = False
        self.on_message_begin()

    @property
    def default_headers(self) -> RawHeaders:
        """Fields of every response: the date, and what the operator adds."""
        return self._state.default_headers

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._state.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport, self.raw_transport)
        self.server, self.client = _addresses(transport)
        if transport.get_extra_info("sslcontext"):
            self.scheme = "https"
        self._zero_copy = is_supported(transport)
        self._counters.connections_open = len(self._state.connections)
        match self._admission():
            case Admission.SERVED:
                self._start_timer(self.limits.idle_timeout)
            case Admission.REFUSED:
                self._too_many = True
                self._start_timer(min(_REFUSAL_SECONDS, self.limits.idle_timeout))
            case Admission.REFUSED_AT_ONCE:
                self._input_over = True
                self._write_refusal(_TOO_MANY)
                transport.close()

    def _admission(self) -> Admission:
        return admission(self.transport, len(self._state.connections), self.limits)

    def connection_lost(self, exc: Exception | None) -> None:
        self._release_long_head()
        self._stop_timer()
        self._stop_keep_alive()
        if self._linger is not None:
            self._linger.cancel()
        for exchange in self._to_answer():
            exchange.disconnect()
        self._waiting.clear()
        self._state.connections.discard(self)
        self.flow.resume_writing()
        if exc is None:
            self.transport.close()
        self._parser = _NO_PARSER
        self._counters.connections_open = len(self._state.connections)
        if not self._running:
            self._let_go()

    def _let_go(self) -> None:
        """Let go of the requests of a connection that is lost.

        They refer to it: as a reference cycle they would keep bytes in memory until the garbage collector runs.
        """
        self._answered = self._exchange = None

    def eof_received(self) -> bool:
        """The client sends nothing more, but still reads: what it has asked for is answered. False closes the transport."""
        if self._is_answered_on():
            return True
        self.watch_unsent()
        return False

    def _is_answered_on(self) -> bool:
        """Whether requests of a client that sends nothing more are still answered."""
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

    def _to_answer(self) -> list[Exchange]:
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
        """Start the timer anew."""
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        """The head of a request did not come in time, or not to its end although it is refused anyway."""
        self._timer = None
        if self._long_head is not None and self._refusal is None:
            left = self._long_head.seconds_left(
                self.loop.time(), self._unparsed, self.limits.idle_timeout
            )
            if left > 0:
                self._start_timer(left)
                return
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._too_many:
            self._refuse(_TOO_MANY)
        elif not self._unparsed:
            self._close_transport()
        else:
            self._refuse(_READ_TIMEOUT)

    # Closing

    def close(self) -> None:
        """Closes once the client had a chance to read the response."""
        if self._linger is not None or self.transport.is_closing():
            return
        self._stop_timer()
        self._idle_since = None
        self.flow.held = False
        if self._in_head and not self._unparsed:
            if self.raw_transport is not None:
                self._flush()
                return
            self.flow.resume_reading()
            self._close_transport()
            return
        exchange = self._exchange
        left = None
        if not self._in_head and exchange is not None and exchange.body_left > 0:
            left = exchange.body_left
        self._end_input()
        self._linger = Linger(self.loop, self.transport, self.flow, left, self._close_transport)

    def _close_transport(self) -> None:
        """Close the transport, once what it still has to send was sent."""
        if isinstance(self._linger, Flush) or self.transport.is_closing():
            return
        if self.raw_transport is None:
            self.transport.close()
            self.watch_unsent()
        elif untaken(self.transport, self.raw_transport):
            self._flush()
        else:
            self.transport.close()

    def watch_unsent(self) -> None:
        """Abort a transport that is closed, now or next, if the client does not take what is still to be sent.

        Nothing else would end it, and it holds a descriptor and up to megabytes.
        """
        if self.raw_transport is None and unsent(self.transport, None):
            self._flush()

    def _flush(self) -> None:
        self._stop_timer()
        if self._linger is not None:
            self._linger.cancel()
        self._linger = Flush(
            self.loop, self.transport, self.raw_transport, self.limits.idle_timeout
        )

    def on_response_complete(self) -> None:
        self._release_long_head()
        self._state.total_requests += 1
        if self._linger is not None:
            # The response said that it is the last one.
            self._waiting.clear()
            return
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

    def _start(self, exchange: Exchange) -> None:
        self._answered = exchange
        self._running += 1
        task = self.loop.create_task(exchange.run(self._config.loaded_app))
        self._state.tasks.add(task)
        task.add_done_callback(self._on_answered)

    def _on_answered(self, task: asyncio.Task[None]) -> None:
        self._state.tasks.discard(task)
        self._running -= 1
        if not self._running and self not in self._state.connections:
            self._let_go()

    def _hold_reading_if_needed(self) -> None:
        """Nothing is read while a request waits for its turn, nor over TLS while one that came in whole is answered."""
        self.flow.held = bool(self._waiting) or (self.raw_transport is not None and self._in_head)
        if self.flow.held:
            self.flow.pause_reading()

    def _may_read(self) -> bool:
        """Whether what comes next may be read at once: a large body stays in the socket until the application accepts it."""
        return self._in_head or self._exchange is None or self._exchange.body_left < TRANSFER_FROM

    def _begin_idle(self) -> None:
        self._idle_since = self.loop.time()
        if self._keep_alive is None:
            self._keep_alive = self.loop.call_later(
                self._config.timeout_keep_alive, self._close_idle
            )

    def _stop_keep_alive(self) -> None:
        if self._keep_alive is not None:
            self._keep_alive.cancel()
            self._keep_alive = None

    def _close_idle(self) -> None:
        """Closes the connection if no request came for as long as it may be kept open for the next one."""
        self._keep_alive = None
        if self._idle_since is None or self.transport.is_closing():
            return
        left = self._idle_since + self._config.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._keep_alive = self.loop.call_later(left, self._close_idle)
        else:
            self._close_transport()

    def shutdown(self) -> None:
        """End the connection with the response to the last request that was read; called by uvicorn's server."""
        if isinstance(self._linger, Linger):
            self._linger.finish()
        elif self._exchange is None or self._exchange.response_complete:
            self._close_transport()
        else:
            self._exchange.keep_alive = False

    def pause_writing(self) -> None:
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        self.flow.resume_writing()

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
        if self._input_over or self.transport.is_closing():
            return
        if self._refusal is not None or (
            self._unparsed > self.limits.head_size and not self._may_be_long()
        ):
            self._refuse_unfinished_head()
        elif self._in_head and self._unparsed:
            if self._timer is None:
                self._start_timer(self.limits.idle_timeout)
        elif self._exchange is not None and self._exchange.response_complete:
            # The rest of a body that was not taken.
            self._begin_idle()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # Upgrades are ignored (RFC 9110, section 7.8), but the parser stops at what follows the head.
                if self._parser.get_method() == b"CONNECT":
                    self._end_input()
                    self._unparsed = 1
                    return
                data = data[upgrade.args[0] :]
                self._parser = self._parser_behind_upgrade()
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
        self._url = b""
        self._headers: RawHeaders = []
        self._expects_continue = False
        self._in_head = True
        self._head_size = self._concat_size = 0
        self._body_length = b"0"
        self._hosts: tuple[bytes, ...] = ()
        self._codings: tuple[bytes, ...] = ()

    def on_url(self, url: bytes) -> None:
        if self._refusal is None:
            self._url += url
            if len(self._url) > _MAX_URL:
                self._refusal = _TOO_LONG

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value) + 4
        if not self._in_head:
            if self._head_size > self.limits.head_size:
                self._refuse_head(self._too_large())
            if self._exchange is not None:
                self._exchange.add_trailer(name, value)
            return
        name = name.lower()
        if self._refusal is None and self._head_size > self.limits.head_size + self._concat_size:
            self._refusal = self._check_head_size(name, value)
        if self._refusal is not None and name != b"origin":
            return
        name, value = KNOWN.get(name, name), KNOWN.get(value, value)
        if name == b"host":
            # Two are too many already; all of thousands would take quadratic time.
            self._hosts = (*self._hosts[:1], value)
        elif name == b"content-length":
            # The parser refuses all that is no number.
            self._body_length = value
        elif name == b"transfer-encoding":
            self._codings += (value,)
        elif name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True
        self._headers.append((name, value))

    def _check_head_size(self, name: bytes, value: bytes) -> Refusal | None:
        """Take a final's list of parts out of the count; the refusal of a head that is too long without it."""
        limits = self.limits
        if limits.concat_size and not self._concat_size:
            # The first of them alone: a list in several fields is refused anyway, and thousands would be counted with each.
            self._concat_size = next(
                (
                    len(n) + len(v) + 4
                    for n, v in (*self._headers, (name, value))
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
            and self._parser.get_method() == b"POST"
        ):
            return False
        if self._acquire_long_head():
            return True
        self._refusal = _TOO_MANY_LONG_HEADS
        return False

    def _acquire_long_head(self) -> bool:
        if not self.limits.concat_size or self._to_answer():
            # One behind a request that is still answered could wait for hours.
            return False
        if self._long_head is None:
            address = None if self.client is None else self.client[0]
            self._long_head = self._long_heads.try_acquire(address, self.loop.time())
            if self._long_head is not None:
                self._start_timer(min(heads.SECONDS, self.limits.idle_timeout))
        return self._long_head is not None

    def _release_long_head(self) -> None:
        if self._long_head is not None:
            self._long_head.release()
            self._long_head = None
            self._stop_timer()
            if self._in_head and self._unparsed:
                self._start_timer(self.limits.idle_timeout)

    def _too_large(self) -> Refusal:
        limit = self.limits.head_size
        return Refusal(
            431, "ERR_HEADER_TOO_LARGE", f"the header fields take more than {limit} bytes"
        )

    def on_headers_complete(self) -> None:
        self._head_is_whole = True
        http_version = self._parser.get_http_version()
        self._refuse_head(self._refusal or self._head_problem(http_version))
        scope = self._complete_scope(http_version)
        if self._waiting:
            self._refuse_if_too_many_wait()
        self._in_head = False
        self._unparsed = self._head_size = self._concat_size = 0
        self._stop_timer()
        if self._long_head is not None:
            # Until the body is complete, too, for which the response may wait.
            self._long_head.began = self.loop.time()
            self._start_timer(min(heads.SECONDS, self.limits.idle_timeout))
        exchange = self._exchange = Exchange(
            self,
            scope,
            keep_alive=http_version not in OLD_VERSIONS
            and self._parser.should_keep_alive()
            and scope["method"] != "CONNECT",
            expects_continue=self._expects_continue and http_version not in OLD_VERSIONS,
            body_left=int(self._body_length),
        )
        extensions: dict[str, object] = {EXTENSION: exchange}
        if self._zero_copy:
            extensions["http.response.zerocopysend"] = {}
        scope["extensions"] = extensions
        if not self._may_read():
            self.flow.pause_reading()
        if self._answered is None or self._answered.response_complete:
            self._start(exchange)
        else:
            # The next request came before the response to the one before it.
            self._waiting.append(exchange)
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
            self._too_many = self._admission() is not Admission.SERVED
            if self._too_many:
                return _TOO_MANY
        return check_host(self._hosts, http_version) or check_codings(self._codings, http_version)

    def _complete_scope(self, http_version: str) -> Scope:
        method = self._parser.get_method().decode("ascii")
        if self._parser.should_upgrade():
            self._framing = self._framing_of_body()
        path, raw_path, query = self._parse_target()
        config = self._config
        return {
            "type": "http",
            "asgi": {"version": config.asgi_version, "spec_version": "2.3"},
            "http_version": http_version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": method,
            "root_path": config.root_path,
            "path": config.root_path + path,
            "raw_path": config.root_path.encode("ascii") + raw_path,
            "query_string": query,
            "headers": self._headers,
            "state": self._app_state.copy(),
        }

    def _parse_target(self) -> tuple[str, bytes, bytes]:
        """The path of the request, decoded and as it came, and its query. A host in the target counts instead of `Host`."""
        authority = b"" if self._url.startswith(b"/") else authority_of(self._url)
        try:
            if authority is None:
                raise httptools.HttpParserInvalidURLError("not a URL of HTTP")
            url = httptools.parse_url(self._url)
            path = url.path.decode("ascii")
        except (httptools.HttpParserInvalidURLError, AttributeError, UnicodeDecodeError):
            self._refusal = Refusal(400, "ERR_BAD_REQUEST", "the request's URL is malformed")
            raise _RefusedHead from None
        if authority:
            self._headers[:] = [
                (name, authority if name == b"host" else value) for name, value in self._headers
            ]
        if "%" in path:
            path = urllib.parse.unquote(path)
        return path, url.path, url.query or b""

    def _framing_of_body(self) -> bytes:
        """The field that tells where the body ends; empty without a body."""
        if self._codings:
            return b"Transfer-Encoding: chunked"
        return b"" if not int(self._body_length) else b"Content-Length: " + self._body_length

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        if self._exchange is not None and self._exchange.feed(body):
            self.flow.pause_reading()

    # Bodies past the parser

    def begin_transfer(
        self, exchange: Exchange, take: Take, room: Room | None = None
    ) -> Transfer | None:
        """See `Exchange.transfer`."""
        if (
            exchange is not self._exchange
            or self._linger is not None
            or self.transport.is_closing()
            or (parsed := exchange.take_parsed()) is None
        ):
            return None
        # Thousands of bodies may be under way for hours: what they do not need goes. That is the timer for the next request,
        # the fields as they came, which the application has read, and the parser, which only waits for the body.
        self._stop_keep_alive()
        self._headers = []
        self._parser = _NO_PARSER
        transfer = Transfer(self, exchange.body_left, parsed, take, room)
        self.flow.pause_reading()
        self.transport.set_protocol(transfer)
        transfer.begin()
        return transfer

    def end_transfer(self, left: int) -> None:
        """The transport is the parser's again; `left` bytes of the body were not received."""
        exchange = self._exchange
        if exchange is None:
            # The connection is lost, and its requests are over.
            return
        exchange.body_left = left
        if self.transport.is_closing():
            return
        self.flow.pause_reading()
        self.transport.set_protocol(Heads(self))
        if left:
            # Nobody can tell any more where the next request begins.
            exchange.keep_alive = False
        else:
            self._parser = _make_parser(self)
            self.on_message_complete()

    def on_message_complete(self) -> None:
        if self._framing:
            # Behind an `Upgrade` the parser takes the end of the head for that of the message.
            return
        # What comes next is no longer told by the fields of this request, which stay in its scope.
        self._head_is_whole = False
        self._headers = []
        self._url = b""
        self._in_head = True
        self._unparsed = 0
        if self._long_head is not None:
            self._stop_timer()
        if self._exchange is not None:
            self._exchange.end_body()
        if self.raw_transport is not None and self._to_answer():
            self._hold_reading_if_needed()

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
            # In the middle of a body that is being taken: its receiver learns that it has ended.
            to_answer[0].disconnect()
            self._close_transport()
        else:
            # The response to the request was sent already.
            self.close()

    def _answer(self, refusal: Refusal) -> None:
        if self.transport.is_closing():
            return
        self._write_refusal(refusal)
        # What was read of the head goes, although the connection stays for a while.
        self._parser, self._headers, self._url = _NO_PARSER, [], b""
        self._end_input()
        self._release_long_head()
        self._unparsed = 1
        self.close()

    def _write_refusal(self, refusal: Refusal) -> None:
        is_head = bool(self._url) and self._parser.get_method() == b"HEAD"
        if is_head and refusal is _TOO_MANY:
            refusal = _BUSY
        body = b"" if is_head else f"{refusal.code}: {refusal.message}\n".encode()
        fields: RawHeaders = [(b"connection", b"close")]
        if not is_head:
            fields += [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", b"%d" % len(body)),
            ]
        if refusal.status in (423, 503):
            fields.append((b"retry-after", b"5"))
        fields += self.refusal_fields(self._headers, is_whole=self._head_is_whole)
        head = serialize(refusal.status, fields, has_body=False, keep_alive=False)
        self.transport.write(head.content + body)

    def refusal_fields(self, headers: RawHeaders, *, is_whole: bool) -> RawHeaders:
        """Fields of a response that is not the application's. headers: the request's; is_whole: whether these are all."""
        origins = [value for name, value in headers if name == b"origin"]
        return self._refusal_headers(b", ".join(origins) if origins else None, is_whole)


def _addresses(
    transport: asyncio.Transport,
) -> tuple[tuple[str, int | None] | None, tuple[str, int] | None]:
    """The addresses of the server and of the client as ASGI has them: host and port, or the path of a Unix socket and None."""
    ours: object = transport.get_extra_info("sockname")
    theirs: object = transport.get_extra_info("peername")
    server: tuple[str, int | None] | None = None
    client: tuple[str, int] | None = None
    match ours:
        case (str(host), int(port), *_):
            server = host, port
        case str(path) if path:
            server = path, None
    match theirs:
        case (str(host), int(port), *_):
            client = host, port
    return server, client
