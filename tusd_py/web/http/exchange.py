"""One request and its response, as an ASGI application sees them, and what ASGI has no messages for.

`scope["extensions"]["tusd_py"]` is the exchange itself: trailer fields, a body that has come in already, a body straight from
the socket, interim responses, a response in one write, a close without one. The extension "http.response.zerocopysend" sends
files. Not for: parsing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from itertools import chain
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

from tusd_py.protocol.headers import Headers, RawHeaders
from tusd_py.web.http import direct_body
from tusd_py.web.http.connection_config import Limits
from tusd_py.web.http.direct_body import TRANSFER_FROM, Room, Take, Transfer
from tusd_py.web.http.flow import Event
from tusd_py.web.http.framing import OLD_VERSIONS
from tusd_py.web.http.response_head import CONTINUE, serialize
from tusd_py.web.http.sendfile import sendfile
from tusd_py.web.http.stalls import StallWatch

EXTENSION = "tusd_py"
"""Name of our ASGI extension."""

_BUFFERED_BYTES = 64 * 1024
"""Bytes of a body that are read ahead of the application."""
_NO_BODY_STATUSES = frozenset({204, 304})
_LOOK_SECONDS = 1.0
"""Between two looks at a client that reads slowly."""
_HELD_SECONDS = 0.005
"""How long an interim response may wait for the final one, to go out with it."""

logger = logging.getLogger(__name__)


class Connection(direct_body.Connection, Protocol):
    """What an exchange needs of its connection, which is an `UploadProtocol`."""

    limits: Limits

    @property
    def default_headers(self) -> RawHeaders:
        """Fields of every response."""

    def refusal_fields(self, headers: RawHeaders, *, is_whole: bool) -> RawHeaders:
        """Fields of a response that is not the application's. headers: the request's."""

    def begin_transfer(
        self, exchange: Exchange, take: Take, room: Room | None, /
    ) -> Transfer | None:
        """See `Exchange.transfer`."""

    def on_response_complete(self) -> None:
        """The response was written."""

    def close(self) -> None:
        """Close once the client had a chance to read the response."""


@dataclass(slots=True, eq=False, repr=False)
class Exchange:
    """One request and its response.

    body_left: bytes of the body that were not parsed yet, where its length is known. disconnected: the client is gone, or its
    body ended early. ends_idle: whether a request ends if no byte of its body comes for the idle time-out; an application with
    a limit of its own clears it. expects_continue: whether the client waits for a 100 before it sends the body. keep_alive:
    whether the connection may have another request. more_body: whether the body is incomplete.
    """

    _connection: Connection
    scope: Scope
    _: KW_ONLY
    keep_alive: bool
    expects_continue: bool
    body_left: int
    disconnected: bool = field(init=False, default=False)
    ends_idle: bool = field(init=False, default=True)
    more_body: bool = field(init=False, default=True)
    response_complete: bool = field(init=False, default=False)
    _body: bytearray = field(init=False, default_factory=bytearray)
    _trailers: RawHeaders | None = field(init=False, default=None)
    _event: Event = field(init=False, default_factory=Event)
    _began_to_receive: bool = field(init=False, default=False)
    _response_started: bool = field(init=False, default=False)
    _chunked: bool = field(init=False, default=False)
    # None for a response without a length.
    _response_left: int | None = field(init=False, default=0)
    _held: bytes = field(init=False, default=b"")
    _held_timer: asyncio.TimerHandle | None = field(init=False, default=None)

    async def run(self, app: ASGIApp) -> None:
        """Call the application; answer with 500, or close the connection, if it fails."""
        problem = "the application returned before its response was complete"
        error: BaseException | None = None
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as raised:  # noqa: BLE001 - the edge of a request, also when it is cancelled at a shutdown
            problem, error = "the application failed", raised
        if error is not None or not (self.response_complete or self.disconnected):
            logger.error(problem, exc_info=error)
            if not self._response_started:
                await self._send_500()
            elif self._response_left is None and not self._chunked:
                # An orderly end would make it look whole.
                self._connection.transport.abort()
            else:
                self._connection.close()
        # The scope refers to this object: as a reference cycle the fields that a client sent would stay until the garbage
        # collector runs, which counts objects and not bytes.
        self.scope["extensions"] = {}

    async def _send_500(self) -> None:
        body = b"ERR_INTERNAL_SERVER_ERROR: internal server error\n"
        headers = self._fields_without_application(body)
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def _fields_without_application(self, body: bytes) -> RawHeaders:
        return [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *self._connection.refusal_fields(self.scope["headers"], is_whole=True),
        ]

    # What the connection reports

    def feed(self, data: bytes) -> bool:
        """Add parsed bytes of the body; True if enough wait for the application by now."""
        self.body_left -= len(data)
        if self.response_complete:
            return False
        self._body += data
        self._event.set()
        return len(self._body) > _BUFFERED_BYTES

    def end_body(self) -> None:
        """The body is complete."""
        if not self.response_complete:
            self.more_body = False
            self._event.set()

    def disconnect(self) -> None:
        """The client is gone, or the rest of the body will not come."""
        self.disconnected = True
        self._event.set()

    def add_trailer(self, name: bytes, value: bytes) -> None:
        """Add a trailer field (RFC 9112, section 7.1.2)."""
        if self._trailers is None:
            self._trailers = []
        self._trailers.append((name, value))

    # ASGI

    async def receive(self) -> Message:
        """ASGI "Receive event". Bytes that arrived before the client was gone come first."""
        self._began_to_receive = True
        self._continue_if_expected()
        if not (self.disconnected or self.response_complete):
            self._connection.flow.resume_reading()
            if self.ends_idle and self.more_body and not self._response_started:
                await self._wait_for_body()
            else:
                await self._event.wait()
            self._event.clear()
        if self.response_complete or (self.disconnected and not self._body):
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def _wait_for_body(self) -> None:
        """Wait for the event, and end the request if nothing comes for too long and no response has begun."""
        try:
            async with asyncio.timeout(self._connection.limits.idle_timeout):
                await self._event.wait()
        except TimeoutError:
            if self._response_started:
                await self._event.wait()
            else:
                self._give_up()

    def _give_up(self) -> None:
        """Answer with 408, as the rest of the body does not come; the application learns of a client that is gone."""
        body = b"ERR_READ_TIMEOUT: the request did not arrive in time\n"
        if not self.respond(408, self._fields_without_application(body), body):
            self._connection.transport.abort()
        self.disconnected = True

    async def send(self, message: Message) -> None:
        """ASGI "Send event". Raises RuntimeError for a message out of order, ValueError for a field that cannot be sent."""
        await self._wait_for_reader()
        kind = message["type"]
        if kind == "http.response.zerocopysend":
            await self._send_file(message)
        elif self.disconnected:
            return
        elif not self._response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"expected http.response.start, not {kind}")
            self._start_response(message["status"], message.get("headers", ()))
        elif not self.response_complete:
            if kind != "http.response.body":
                raise RuntimeError(f"expected http.response.body, not {kind}")
            self._write_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"unexpected {kind}: the response is complete")

    def _start_response(self, status: int, headers: RawHeaders) -> None:
        head = serialize(
            status,
            chain(self._connection.default_headers, headers),
            has_body=self.scope["method"] != "HEAD" and status not in _NO_BODY_STATUSES,
            keep_alive=self.keep_alive,
            takes_chunks=self.scope["http_version"] not in OLD_VERSIONS,
        )
        self._response_started = True
        self.expects_continue = False
        self._chunked = head.chunked
        self._response_left = head.length
        if head.closes:
            self.keep_alive = False
        self._connection.transport.write(self._take_held() + head.content)

    def _write_body(self, body: bytes, *, more: bool) -> None:
        transport = self._connection.transport
        if self.scope["method"] == "HEAD":
            self._response_left = 0
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            transport.write(data if more else data + b"0\r\n\r\n")
        else:
            if self._response_left is not None:
                if len(body) > self._response_left:
                    raise RuntimeError("the response is longer than its Content-Length")
                self._response_left -= len(body)
            transport.write(body)
        if not more:
            if self._response_left:
                raise RuntimeError("the response is shorter than its Content-Length")
            self._end_response()

    def _end_response(self) -> None:
        self.response_complete = True
        self._event.set()
        if not self.keep_alive:
            self._connection.close()
        self._connection.on_response_complete()

    async def _wait_for_reader(self) -> None:
        """Return when the client has read most of what was sent; disconnect one that reads nothing for too long."""
        flow = self._connection.flow
        if not flow.write_paused or self.disconnected:
            return
        transport = self._connection.transport
        idle_timeout = self._connection.limits.idle_timeout
        watch = StallWatch(self._connection.loop.time, transport, flow.raw, idle_timeout)
        while flow.write_paused:
            try:
                async with asyncio.timeout(min(_LOOK_SECONDS, idle_timeout / 4)):
                    await flow.drain()
            except TimeoutError:
                if watch.is_stalled():
                    transport.abort()
                    self.disconnected = True
                    return

    async def _send_file(self, message: Message) -> None:
        """ASGI "Zero Copy Send"; `count` and `offset` in bytes, both given."""
        connection = self._connection
        if not self.disconnected:
            try:
                sent = await sendfile(
                    connection.loop,
                    connection.transport,
                    message["file"].fileno(),
                    message["offset"],
                    message["count"],
                    idle_timeout=connection.limits.idle_timeout,
                )
            finally:
                # If the transport was aborted, its protocol learns of that only later.
                if connection.transport.is_closing():
                    self.disconnected = True
            if self._response_left is not None:
                self._response_left -= sent
            if sent < message["count"]:
                self.disconnected = True
        if not self.disconnected:
            self._write_body(b"", more=message.get("more_body", False))

    def _continue_if_expected(self) -> None:
        """Send the 100 that a client waits for before it sends its body (RFC 9110, section 10.1.1)."""
        if self.expects_continue and not self._connection.transport.is_closing():
            self.expects_continue = False
            self._connection.transport.write(CONTINUE)

    # Our extension

    def trailers(self) -> Mapping[str, str]:
        """Trailer fields, names in lower case; complete when the body is."""
        return Headers(self._trailers or ())

    def arrived(self) -> bytes | None:
        """The whole body if it has come in already; `receive` then has nothing more. None if more is to come, or if the
        application has begun to receive it."""
        if self._began_to_receive or self.more_body or self.disconnected or not self._body:
            return None
        self._began_to_receive = True
        body, self._body = bytes(self._body), bytearray()
        return body

    def respond(self, status: int, headers: RawHeaders, body: bytes) -> bool:
        """Write a whole response at once; False where that is not possible, and nothing was done.

        headers: names in lower case, Content-Length among them where the response has one.
        """
        connection = self._connection
        if self._response_started or self.disconnected or connection.flow.write_paused:
            return False
        try:
            head = serialize(
                status,
                chain(connection.default_headers, headers),
                has_body=False,
                keep_alive=self.keep_alive,
            )
        except ValueError:
            return False
        if head.length != len(body):
            return False
        if head.closes:
            self.keep_alive = False
        self._response_started = True
        self.expects_continue = False
        connection.transport.write(self._take_held() + head.content + body)
        self._end_response()
        return True

    def send_informational(self, status: int, headers: RawHeaders) -> bool:
        """Write an interim response (RFC 9110, section 15.2); False if the client cannot get it, or does not read.

        One to a request that is complete waits some milliseconds for the final response, to go out with it.
        headers: names in lower case. Raises ValueError for a field that cannot be sent.
        """
        connection = self._connection
        if (
            self._response_started
            or self.disconnected
            or self.scope["http_version"] in OLD_VERSIONS
            or connection.flow.write_paused
            or connection.transport.is_closing()
        ):
            return False
        head = serialize(status, headers, has_body=False, keep_alive=True)
        if self.more_body:
            connection.transport.write(head.content)
            return True
        self._held += head.content
        if self._held_timer is None:
            self._held_timer = connection.loop.call_later(_HELD_SECONDS, self._write_held)
        return True

    def _write_held(self) -> None:
        """Write the interim responses that wait."""
        held = self._take_held()
        if held and not self._connection.transport.is_closing():
            self._connection.transport.write(held)

    def _take_held(self) -> bytes:
        """The interim responses that wait, to be written before anything else."""
        if self._held_timer is None:
            return b""
        self._held_timer.cancel()
        self._held_timer = None
        held, self._held = self._held, b""
        return held

    def close_unanswered(self) -> bool:
        """Close the connection in place of a response, behind interim ones; False if the response has begun."""
        if self._response_started:
            return False
        self._response_started = True
        self.expects_continue = False
        self.keep_alive = False
        if not self.disconnected:
            self._write_held()
            self._end_response()
        return True

    def transfer(self, take: Take, room: Room | None = None) -> Transfer | None:
        """Let the body bypass the HTTP parser, straight from the socket to `take`, or into the buffer that `room` returns.

        None where the body is too small for that, has no length, or where the application has begun to receive it: it then
        comes by `receive`.
        """
        return self._connection.begin_transfer(self, take, room)

    def take_parsed(self) -> bytes | None:
        """The bytes of the body that were parsed already, before the rest bypasses the parser; None if it may not."""
        if (
            self.body_left <= 0
            or self.body_left + len(self._body) < TRANSFER_FROM
            or self.disconnected
            or self._began_to_receive
        ):
            return None
        self.scope["headers"] = []
        self._continue_if_expected()
        parsed, self._body = bytes(self._body), bytearray()
        return parsed
