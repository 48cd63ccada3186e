"""A small HTTP/1.1 client on a blocking socket that can send malformed and unusual requests.

Bytes go out exactly as given: headers in pieces, chunked bodies with trailers, half-closed and
reset connections, pipelined requests. Responses are parsed strictly, interim ones (1xx) included,
so that a malformed answer fails the test. Every wait has a time-out.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

TIMEOUT = 60.0
"""Seconds that any single send or receive may take."""

HeaderList = Iterable[tuple[str, str]] | Mapping[str, str]


class ConnectionEnded(ConnectionError):
    """The server closed the connection before a whole response had arrived."""


class BadResponse(AssertionError):
    """The response is not valid HTTP/1.1."""


@dataclass(frozen=True)
class Response:
    """One response; ``interim`` are the 1xx that came before it."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    interim: tuple[Response, ...] = field(default=())

    def all(self, name: str) -> list[str]:
        """Every value of a header, in the order received."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """The one value of a header, None without it. A repeated header fails."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} is repeated: {values}"
        return values[0] if values else None

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        assert value is not None, f"{self.status} without {name}: {self.headers}"
        return value

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def code(self) -> str:
        """The ``ERR_…`` of a text body."""
        return self.text.partition(":")[0].strip()

    def items(self, name: str) -> list[str]:
        """A comma-separated header's items."""
        return [item.strip() for item in self[name].split(",") if item.strip()]


def head_bytes(method: str, target: str, headers: HeaderList, host: str) -> bytes:
    """A request line and headers, as bytes; ``Host`` is added unless it is given."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    if not any(name.lower() == "host" for name, _ in pairs):
        pairs.insert(0, ("Host", host))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunk(data: bytes, extension: str = "") -> bytes:
    """One chunk of a chunked body. (Empty data would be the end: use :func:`last_chunk`.)"""
    assert data
    return f"{len(data):x}{extension}\r\n".encode() + data + b"\r\n"


def last_chunk(trailers: HeaderList = ()) -> bytes:
    """The end of a chunked body, with trailers."""
    pairs = trailers.items() if isinstance(trailers, Mapping) else trailers
    return b"0\r\n" + b"".join(f"{k}: {v}\r\n".encode() for k, v in pairs) + b"\r\n"


class Connection:
    """One TCP (or unix, or TLS) connection. Use it in a ``with`` block."""

    def __init__(
        self,
        address: tuple[str, int] | str,
        *,
        timeout: float = TIMEOUT,
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        """``address``: host and port, or a unix socket's path. ``receive_buffer``: SO_RCVBUF."""
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        if not isinstance(address, str) and ":" in address[0]:
            family = socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.connect(address)
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.host = "localhost" if isinstance(address, str) else f"{address[0]}:{address[1]}"
            server_name = None if isinstance(address, str) else address[0]
            self.sock = tls.wrap_socket(sock, server_hostname=server_name) if tls else sock
        except BaseException:
            sock.close()
            raise
        self._buffer = b""

    # -- sending -------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_head(self, method: str, target: str, headers: HeaderList = ()) -> None:
        self.send(head_bytes(method, target, headers, self.host))

    def send_chunk(self, data: bytes) -> None:
        self.send(chunk(data))

    def send_last_chunk(self, trailers: HeaderList = ()) -> None:
        self.send(last_chunk(trailers))

    def half_close(self) -> None:
        """FIN in our direction; the server's direction stays open.

        Does nothing after a reset, which reading reports.
        """
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as problem:
            if problem.errno != errno.ENOTCONN:
                raise

    def reset(self) -> None:
        """RST instead of an orderly end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def unread(self) -> int:
        """Bytes in the receive queue of the server's end, -1 without one. For servers on this machine, over TCP and IPv4."""
        ports = [self.sock.getpeername()[1], self.sock.getsockname()[1]]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, _, queues, *_ = line.split()
            if [int(address.rpartition(":")[2], 16) for address in (local, remote)] == ports:
                return int(queues.partition(":")[2], 16)
        return -1

    def all_is_read(self) -> bool:
        """Whether the server has read all that was sent. For such servers, too."""
        (unsent,) = struct.unpack("i", fcntl.ioctl(self.sock, termios.TIOCOUTQ, b"\0\0\0\0"))
        return unsent == 0 and self.unread() == 0

    # -- receiving -----------------------------------------------------------------------------

    def request(
        self, method: str, target: str, headers: HeaderList = (), body: bytes | None = None
    ) -> Response:
        """A whole request at once (``Content-Length`` is added where there is a body).

        If the server answers and closes before everything is sent, the response is read anyway.
        """
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        names = {name.lower() for name, _ in pairs}
        if body is not None and not names & {"content-length", "transfer-encoding"}:
            pairs.append(("Content-Length", str(len(body))))
        # Refused early, the answer lies in the receive buffer although sending has failed.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.send(head_bytes(method, target, pairs, self.host) + (body or b""))
        return self.read_response(method)

    def read_response(self, method: str = "GET") -> Response:
        """The next final response, with the interim ones before it."""
        interim: list[Response] = []
        while True:
            response = self.read_any(method)
            if response.status >= 200:
                return Response(
                    response.status,
                    response.reason,
                    response.headers,
                    response.body,
                    tuple(interim),
                )
            interim.append(response)

    def read_any(self, method: str = "GET") -> Response:
        """The next response, be it interim or final. ``method``: the request's (HEAD, no body)."""
        status, reason, headers = self._read_head()
        response = Response(status, reason, headers)
        if status < 200:
            return response
        return Response(status, reason, headers, self._read_body(method, response))

    def read_to_end(self) -> bytes:
        """Everything up to the server's FIN. Fails with a timeout without one."""
        parts = [self._buffer]
        while data := self.sock.recv(65536):
            parts.append(data)
        self._buffer = b""
        return b"".join(parts)

    def read_as_a_slow_link(self, start: int, stop: int, between: Callable[[], None]) -> bytes:
        """Everything up to the end; from `start` to `stop`, in bytes, at 400 kB/s. between: called after each slow step."""
        received = bytearray()
        while True:
            part = b""
            with suppress(ConnectionResetError):
                part = self.sock.recv(16_384)
            if not part:
                return bytes(received)
            received += part
            if start < len(received) < stop:
                time.sleep(0.04)
                between()

    def ended(self) -> bool:
        """Wait for the server's FIN or RST: True if no byte comes before it."""
        try:
            return self.read_to_end() == b""
        except ConnectionResetError:
            return True

    def silent_for(self, seconds: float) -> bool:
        """True if neither bytes nor an end arrive for `seconds`. (Only to prove an absence.)"""
        if self._buffer:
            return False
        before = self.sock.gettimeout()
        self.sock.settimeout(seconds)
        try:
            self._receive()
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(before)
        return False

    def _receive(self) -> bool:
        data = self.sock.recv(65536)
        self._buffer += data
        return bool(data)

    def _need(self, count: int) -> None:
        parts = [self._buffer]
        have = len(self._buffer)
        while have < count:
            data = self.sock.recv(min(1 << 20, count - have))
            if not data:
                raise ConnectionEnded(f"{have} of {count} bytes: {b''.join(parts)[:200]!r}")
            parts.append(data)
            have += len(data)
        self._buffer = b"".join(parts)

    def _take(self, count: int) -> bytes:
        self._need(count)
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def _take_line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            if not self._receive():
                raise ConnectionEnded(f"in the middle of a line: {self._buffer!r}")
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _read_head(self) -> tuple[int, str, tuple[tuple[str, str], ...]]:
        if not self._buffer and not self._receive():
            raise ConnectionEnded("no response")
        parts = self._take_line().decode("latin-1").split(" ", 2)
        if len(parts) < 2 or parts[0] != "HTTP/1.1" or not parts[1].isdigit():
            raise BadResponse(f"status line {parts}")
        headers: list[tuple[str, str]] = []
        while line := self._take_line():
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or name != name.strip() or not name:
                raise BadResponse(f"header line {line!r}")
            headers.append((name, value.strip()))
        return int(parts[1]), parts[2] if len(parts) > 2 else "", tuple(headers)

    def _read_body(self, method: str, response: Response) -> bytes:
        if method == "HEAD" or response.status in (204, 304):
            if response.status == 204 and "Transfer-Encoding" in response:
                raise BadResponse("204 with Transfer-Encoding")
            return b""
        if (response.get("Transfer-Encoding") or "").lower() == "chunked":
            return self._read_chunks()
        length = response.get("Content-Length")
        if length is None:
            return self.read_to_end()
        return self._take(int(length))

    def _read_chunks(self) -> bytes:
        data: list[bytes] = []
        while size := int(self._take_line().partition(b";")[0], 16):
            data.append(self._take(size))
            if self._take(2) != b"\r\n":
                raise BadResponse("chunk without its end")
        while self._take_line():
            pass
        return b"".join(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
