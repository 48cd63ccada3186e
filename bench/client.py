"""HTTP/1.1 as a load generator needs it: many connections in one thread, at little cost.

A session is a generator: it yields requests and is sent the replies to them, one connection each. Large bodies go out by
sendfile from memory, so that they are not copied; large responses are thrown away in the kernel. Not a client for anything
else: it trusts the server to frame its replies properly.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

from bench.payload import PAYLOAD_SIZE

Session = Generator["Request", "Reply", None]

_IN_MEMORY = 64 * 1024
"""Bytes. Smaller bodies go out together with their head, by one call."""
_SINK = bytearray(1024 * 1024)
_NO_BODY = frozenset((204, 304))


class LoadError(Exception):
    """The server did not do what was asked; the measurement is void."""


@dataclass(slots=True)
class Request:
    """head: the whole of it, with the empty line. size: bytes of the payload, from its beginning, that make the body.

    expect: the status that the reply must have. label: what its time is recorded under.
    """

    head: bytes
    label: str
    expect: int
    size: int = 0
    is_head: bool = False


@dataclass(slots=True)
class Reply:
    """head: as received, without the empty line. size: bytes of the body, which is thrown away."""

    status: int
    head: bytes
    size: int = 0

    def field(self, name: bytes) -> bytes:
        """The value of a header field, name in lower case; empty if it is missing."""
        at = self.head.lower().find(b"\r\n" + name + b":")
        if at < 0:
            return b""
        end = self.head.find(b"\r\n", at + 2)
        return self.head[at + len(name) + 3 : end if end >= 0 else len(self.head)].strip()


@dataclass(slots=True)
class Timings:
    """Seconds that each kind of request took."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, label: str, seconds: float) -> None:
        self.seconds.setdefault(label, []).append(seconds)


class Engine:
    """Drives sessions against one server. payload: descriptor of a file of `PAYLOAD_SIZE` bytes."""

    def __init__(self, host: str, port: int, payload: int) -> None:
        self.address = (host, port)
        self.payload = payload
        self.start = os.pread(payload, _IN_MEMORY, 0)
        self.timings = Timings()
        self.poll = select.epoll()
        self._connections: dict[int, _Connection] = {}

    def run(self, sessions: Iterable[Session], *, limit: float) -> None:
        """Runs all sessions at the same time to their ends. Raises LoadError, also after `limit` seconds."""
        deadline = time.perf_counter() + limit
        gc.disable()
        try:
            for session in sessions:
                _Connection(self, session).begin()
            while self._connections:
                for descriptor, events in self.poll.poll(1.0):
                    connection = self._connections.get(descriptor)
                    if connection is not None:
                        connection.handle(events)
                if time.perf_counter() > deadline:
                    raise LoadError(f"not done after {limit:.0f} s")
        finally:
            gc.enable()
            for connection in list(self._connections.values()):
                connection.close()

    def connect(self) -> socket.socket:
        """A new connection, non-blocking."""
        sock = socket.create_connection(self.address, timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return sock

    def opened(self, connection: _Connection, sock: socket.socket) -> None:
        self._connections[sock.fileno()] = connection
        self.poll.register(sock, select.EPOLLIN)

    def closed(self, sock: socket.socket) -> None:
        del self._connections[sock.fileno()]
        self.poll.unregister(sock)
        sock.close()


class _Connection:
    """One session and its socket, which is opened anew when the server closed it after a reply."""

    def __init__(self, engine: Engine, session: Session) -> None:
        self._engine = engine
        self._session = session
        self._sock: socket.socket | None = None
        self._request = Request(b"", "", 0)
        self._began = 0.0
        self._unsent: memoryview | bytes = b""
        self._position = self._left = 0
        self._waiting_to_write = False
        self._received = bytearray()
        self._reply: Reply | None = None
        self._to_discard = 0
        self._chunked = False

    def begin(self) -> None:
        """Sends the session's first request."""
        self._next(None)

    def close(self) -> None:
        if self._sock is not None:
            self._engine.closed(self._sock)
            self._sock = None

    def handle(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._send()
        if events & ~select.EPOLLOUT:
            self._receive()

    # Sending

    def _next(self, reply: Reply | None) -> None:
        try:
            self._request = request = (
                next(self._session) if reply is None else self._session.send(reply)
            )
        except StopIteration:
            self.close()
            return
        if self._sock is None:
            self._sock = self._engine.connect()
            self._engine.opened(self, self._sock)
        self._reply = None
        self._began = time.perf_counter()
        if request.size <= _IN_MEMORY:
            whole = request.head + self._engine.start[: request.size]
            sent = self._sock.send(whole)
            if sent == len(whole):
                return
            self._unsent = memoryview(whole)[sent:]
            self._left = 0
        else:
            self._unsent = request.head
            self._position, self._left = 0, request.size
        self._send()

    def _send(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            while self._unsent:
                sent = sock.send(self._unsent, socket.MSG_MORE if self._left else 0)
                self._unsent = self._unsent[sent:]
            while self._left:
                count = min(self._left, PAYLOAD_SIZE - self._position)
                sent = os.sendfile(sock.fileno(), self._engine.payload, self._position, count)
                self._left -= sent
                self._position = (self._position + sent) % PAYLOAD_SIZE
        except BlockingIOError:
            self._watch_writing(True)
        except (BrokenPipeError, ConnectionResetError):
            # Refused: the reply, if it can still be read, says why.
            self._unsent, self._left = b"", 0
            self._watch_writing(False)
        else:
            self._watch_writing(False)

    def _watch_writing(self, wanted: bool) -> None:
        if wanted != self._waiting_to_write and self._sock is not None:
            self._waiting_to_write = wanted
            events = select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN
            self._engine.poll.modify(self._sock, events)

    # Receiving

    def _receive(self) -> None:
        while self._sock is not None:
            try:
                if self._to_discard:
                    # TCP throws away what MSG_TRUNC asks for without copying it.
                    size = self._sock.recv_into(_SINK, 0, socket.MSG_TRUNC)
                    self._to_discard -= size
                else:
                    data = self._sock.recv(_IN_MEMORY)
                    size = len(data)
                    self._received += data
            except BlockingIOError:
                return
            except ConnectionResetError:
                size = 0
            if not size:
                raise LoadError(f"the connection ended during a {self._request.label}")
            if self._is_complete():
                self._done()
                return

    def _is_complete(self) -> bool:
        """Whether the whole reply is here; keeps count of its body."""
        if self._reply is None:
            head = self._final_head()
            if head is None:
                return False
            self._reply = reply = Reply(int(head[9:12]), head)
            self._check(reply)
            self._chunked = False
            if reply.status in _NO_BODY or self._request.is_head:
                return True
            reply.size = int(reply.field(b"content-length") or 0)
            self._chunked = b"chunked" in reply.field(b"transfer-encoding")
            self._to_discard = reply.size - len(self._received)
            if not self._chunked:
                self._received.clear()
        if self._chunked:
            self._to_discard = 0
            return self._received.endswith(b"0\r\n\r\n")
        return self._to_discard == 0

    def _final_head(self) -> bytes | None:
        """The head of the reply, once it is here; interim ones before it are passed over."""
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end])
            del self._received[: end + 4]
            if not head.startswith(b"HTTP/1.1 1"):
                return head
        return None

    def _check(self, reply: Reply) -> None:
        if reply.status != self._request.expect:
            said = self._received[:200].decode("latin-1").strip()
            raise LoadError(
                f"a {self._request.label} was answered with {reply.status}"
                f" instead of {self._request.expect}{f': {said}' if said.isprintable() else ''}"
            )

    def _done(self) -> None:
        self._engine.timings.add(self._request.label, time.perf_counter() - self._began)
        reply = self._reply
        if reply is None:
            return
        self._received.clear()
        if b"close" in reply.field(b"connection").lower():
            self.close()
        self._next(reply)
