"""The least that an upload server can cost in Python: a thread a connection, a copy loop, a file.

It speaks just enough of tus for the load generator: no locks, no info files, no checks, nothing durable. What it costs is what
the machine and the kernel cost. Also here: hashing alone, the floor of what checksums cost.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

BUFFER = 1024 * 1024
_REQUEST = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n")
_FIELD = re.compile(rb"\r\n(content-length|upload-checksum|range): *([^\r]*)", re.IGNORECASE)
_EXTENSIONS = "creation,creation-with-upload,checksum"


@dataclass(slots=True)
class _Request:
    method: str
    name: str
    fields: dict[str, str]


class _Connection(threading.Thread):
    def __init__(self, sock: socket.socket, directory: Path) -> None:
        super().__init__(daemon=True)
        self._sock = sock
        self._directory = directory
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        # What was received and not yet used.
        self._start = self._end = 0

    def run(self) -> None:
        try:
            with self._sock:
                while (request := self._next_request()) is not None:
                    self._answer(request)
        except ConnectionError:
            # The client has gone; what came is in the file.
            return

    def _next_request(self) -> _Request | None:
        """The next head; None at the end of the connection."""
        while (end := self._buffer.find(b"\r\n\r\n", self._start, self._end)) < 0:
            if self._start:
                rest = self._buffer[self._start : self._end]
                self._buffer[: len(rest)] = rest
                self._start, self._end = 0, len(rest)
            received = self._sock.recv_into(self._view[self._end :])
            if not received:
                return None
            self._end += received
        head = bytes(self._view[self._start : end + 2])
        self._use(end + 4 - self._start)
        start = _REQUEST.match(head)
        if start is None:
            raise ConnectionError("this is not HTTP/1.1")
        fields = {
            name.decode().lower(): value.decode()
            for name, value in _FIELD.findall(head, start.end() - 2)
        }
        return _Request(start[1].decode(), start[2].decode().rpartition("/")[2], fields)

    def _use(self, size: int) -> None:
        self._start += size
        if self._start == self._end:
            self._start = self._end = 0

    def _answer(self, request: _Request) -> None:
        if request.method == "OPTIONS":
            self._reply("204 No Content", f"Tus-Extension: {_EXTENSIONS}")
        elif request.method == "POST":
            name = os.urandom(16).hex()
            offset = self._store(name, request, os.O_CREAT | os.O_EXCL)
            self._reply(
                "201 Created",
                f"Location: /files/{name}\r\nUpload-Offset: {offset}\r\nContent-Length: 0",
            )
        elif request.method == "PATCH":
            self._reply("204 No Content", f"Upload-Offset: {self._store(request.name, request, 0)}")
        elif request.method == "HEAD":
            size = (self._directory / request.name).stat().st_size
            self._reply("200 OK", f"Upload-Offset: {size}")
        else:
            self._send_file(request)

    def _reply(self, status: str, fields: str) -> None:
        self._sock.sendall(f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode())

    def _store(self, name: str, request: _Request, flags: int) -> int:
        """Appends the body to the file; returns the file's length."""
        left = int(request.fields.get("content-length", "0"))
        checksum = request.fields.get("upload-checksum")
        digest = hashlib.sha256() if checksum else None
        descriptor = os.open(self._directory / name, os.O_WRONLY | os.O_APPEND | flags, 0o640)
        try:
            while left:
                if self._start == self._end:
                    self._end = self._sock.recv_into(self._view[: min(left, BUFFER)])
                    if not self._end:
                        raise ConnectionError("the body ended early")
                size = min(left, self._end - self._start)
                data = self._view[self._start : self._start + size]
                os.write(descriptor, data)
                if digest is not None:
                    digest.update(data)
                self._use(size)
                left -= size
            if digest is not None and checksum != f"sha256 {_base64(digest.digest())}":
                raise ConnectionError("the checksum does not match")
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def _send_file(self, request: _Request) -> None:
        with (self._directory / request.name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start, count, status = 0, size, "200 OK"
            if wanted := request.fields.get("range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, count = int(first), int(last) - int(first) + 1
                status = f"206 Partial Content\r\nContent-Range: bytes {wanted[6:]}/{size}"
            self._reply(status, f"Content-Length: {count}")
            self._sock.sendfile(file, start, count)


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def serve(directory: Path, port: int) -> None:
    """Serves until the process ends."""
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    threading.stack_size(256 * 1024)
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _Connection(sock, directory).start()


def hash_alone(size: int) -> tuple[float, float]:
    """Hashes `size` bytes with SHA-256; returns seconds and CPU seconds."""
    data = os.urandom(BUFFER)
    digest = hashlib.sha256()
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(size // BUFFER):
        digest.update(data)
    return time.perf_counter() - began, time.process_time() - cpu


if __name__ == "__main__":
    if sys.argv[1] == "hash":
        print(*hash_alone(int(sys.argv[2])))
    else:
        serve(Path(sys.argv[1]), int(sys.argv[2]))
