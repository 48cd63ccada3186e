"""A hook endpoint for tests: a real HTTP server in a thread that records every call and answers as scripted."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Document = dict[str, Any]
"""JSON as it came."""


@dataclass(frozen=True)
class Reply:
    """A response of the endpoint. body: text, or an object that is sent as JSON. hold: event to wait for first."""

    status: int = 200
    body: str | bytes | Document = "{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    cut: bool = False
    """Ends the connection instead of answering."""

    def encoded(self) -> bytes:
        if isinstance(self.body, dict):
            return json.dumps(self.body).encode()
        return self.body.encode() if isinstance(self.body, str) else self.body


@dataclass(frozen=True)
class Call:
    """One request to the endpoint. headers: names in lower case. connection: the client's port."""

    path: str
    headers: Mapping[str, str]
    raw: bytes
    connection: int
    at: float

    @property
    def document(self) -> Document:
        value: Document = json.loads(self.raw)
        return value

    @property
    def type(self) -> str:
        return str(self.document["Type"])

    @property
    def upload(self) -> Document:
        value: Document = self.document["Event"]["Upload"]
        return value

    @property
    def request(self) -> Document:
        value: Document = self.document["Event"]["HTTPRequest"]
        return value


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    endpoint: Endpoint

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of clients that go away in the middle of a call, as those do that are killed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = Call(self.path, headers, raw, self.client_address[1], time.monotonic())
        reply = self.server.endpoint.reply_to(call)
        if reply.hold is not None:
            reply.hold.wait(60)
        if reply.cut:
            self.close_connection = True
            return
        body = reply.encoded()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the calls are recorded."""


class Endpoint:
    """The endpoint. Use it in a ``with`` block; :meth:`script` says what it answers, ``{}`` otherwise."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.calls: list[Call] = []
        self._now: Endpoint = self
        self._scripts: dict[str, list[Reply]] = {}
        self._news = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.endpoint = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}/hooks"

    def script(self, event_type: str, *replies: Reply) -> None:
        """These are the next answers to events of a type, one a call; the last one stays."""
        with self._news:
            self._scripts[event_type] = list(replies)

    def forget(self) -> None:
        """Remove all recorded calls and scripts."""
        with self._news:
            self.calls.clear()
            self._scripts.clear()

    @contextmanager
    def passing_on_to(self, other: Endpoint) -> Iterator[None]:
        """In the meantime `other` records the calls that come in here, and says what is answered."""
        self._now = other
        try:
            yield
        finally:
            self._now = self

    def reply_to(self, call: Call) -> Reply:
        if self._now is not self:
            return self._now.reply_to(call)
        with self._news:
            self.calls.append(call)
            self._news.notify_all()
            replies = self._scripts.get(call.type, [])
            if len(replies) > 1:
                return replies.pop(0)
            return replies[0] if replies else Reply()

    def of(self, *event_types: str) -> list[Call]:
        """The calls for events of these types so far."""
        with self._news:
            return [call for call in self.calls if call.type in event_types]

    def types(self) -> list[str]:
        """The types of all calls so far, in order."""
        with self._news:
            return [call.type for call in self.calls]

    def wait_for(
        self, event_type: str, count: int = 1, where: Callable[[Call], bool] = lambda _: True
    ) -> list[Call]:
        """Wait until there were ``count`` calls of a type (that fit ``where``); those calls."""
        with self._news:
            found: list[Call] = []

            def there() -> bool:
                found[:] = [c for c in self.calls if c.type == event_type and where(c)]
                return len(found) >= count

            assert self._news.wait_for(there, 30), f"{len(found)} of {count} {event_type}"
            return found

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def closed_port() -> Iterator[int]:
    """A port of this machine at which nobody listens, and nobody else can meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        yield port
