"""A tus client on top of the raw client: create, patch, head, delete, options.

A request is a connection of its own unless a :class:`Connection` is passed. Nothing is hidden that
a test may want to break: every call takes extra headers, and ``None`` for a header takes it away.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

from tests.support.server import ServerProcess
from tests.support.waiting import wait_until
from tests.support.wire import TIMEOUT, Connection, Response, chunk

OCTETS = "application/offset+octet-stream"

Extra = Mapping[str, str | None]


def metadata(**values: str | bytes) -> str:
    """An ``Upload-Metadata`` value."""
    pairs = []
    for key, value in values.items():
        raw = value.encode() if isinstance(value, str) else value
        pairs.append(f"{key} {base64.b64encode(raw).decode()}".rstrip(" ") if raw else key)
    return ",".join(pairs)


def checksum(data: bytes, algorithm: str = "sha1") -> str:
    """An ``Upload-Checksum`` value for ``data``, computed by the standard library alone."""
    if algorithm == "crc32":
        digest = zlib.crc32(data).to_bytes(4, "big")
    elif algorithm == "crc32c":
        digest = _crc32c(data).to_bytes(4, "big")
    else:
        digest = hashlib.new(algorithm, data).digest()
    return f"{algorithm} {base64.b64encode(digest).decode()}"


def _crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), bit by bit: slow and independent of what the server uses."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def merged(base: Mapping[str, str], extra: Extra | None) -> dict[str, str]:
    """``base`` with ``extra`` on top; names are compared without case, None removes."""
    result = dict(base)
    for name, value in (extra or {}).items():
        for key in [key for key in result if key.lower() == name.lower()]:
            del result[key]
        if value is not None:
            result[name] = value
    return result


def path_of(location: str) -> str:
    """The path of a Location, for the next request's line."""
    return urlsplit(location).path


def id_of(path: str) -> str:
    """The upload's id: the last segment of its path."""
    return path.rsplit("/", 1)[1]


class Tus:
    """A client of one server. Paths in and out are absolute paths (``/files/<id>``)."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.collection = server.base_path

    def connect(self, timeout: float = TIMEOUT) -> Connection:
        return Connection(self.server.address, timeout=timeout)

    def request(
        self,
        method: str,
        path: str,
        headers: Extra | None = None,
        body: bytes | None = None,
        on: Connection | None = None,
    ) -> Response:
        """Any request; ``Tus-Resumable`` is not added here."""
        pairs = {k: v for k, v in (headers or {}).items() if v is not None}
        if on is not None:
            return on.request(method, path, pairs, body)
        with self.connect() as connection:
            return connection.request(method, path, pairs, body)

    # -- the protocol's requests ---------------------------------------------------------------

    def create(
        self,
        length: int | str | None = None,
        *,
        body: bytes | None = None,
        headers: Extra | None = None,
        on: Connection | None = None,
    ) -> Response:
        """POST to the collection. With ``body``: creation-with-upload. No length: none is sent."""
        base = {"Tus-Resumable": "1.0.0"}
        if length is not None:
            base["Upload-Length"] = str(length)
        if body is not None:
            base["Content-Type"] = OCTETS
        else:
            base["Content-Length"] = "0"
        return self.request("POST", self.collection, merged(base, headers), body, on)

    def patch(
        self,
        path: str,
        offset: int | str,
        body: bytes,
        headers: Extra | None = None,
        on: Connection | None = None,
    ) -> Response:
        return self.request("PATCH", path, self.patch_headers(offset, headers), body, on)

    def head(self, path: str, headers: Extra | None = None) -> Response:
        return self.request("HEAD", path, merged({"Tus-Resumable": "1.0.0"}, headers))

    def delete(self, path: str, headers: Extra | None = None) -> Response:
        return self.request("DELETE", path, merged({"Tus-Resumable": "1.0.0"}, headers))

    def options(self, path: str | None = None, headers: Extra | None = None) -> Response:
        return self.request("OPTIONS", path or self.collection, headers)

    def get(self, path: str, headers: Extra | None = None) -> Response:
        return self.request("GET", path, headers)

    # -- what tests need around them -----------------------------------------------------------

    def patch_headers(self, offset: int | str, extra: Extra | None = None) -> dict[str, str]:
        base = {
            "Tus-Resumable": "1.0.0",
            "Content-Type": OCTETS,
            "Upload-Offset": str(offset),
        }
        return merged(base, extra)

    def new(
        self,
        length: int | None,
        *,
        headers: Extra | None = None,
        body: bytes | None = None,
    ) -> str:
        """A new upload's path; a length of None defers it."""
        extra = dict(headers or {})
        if length is None:
            extra["Upload-Defer-Length"] = "1"
        response = self.create(length, headers=extra, body=body)
        assert response.status == 201, response
        return path_of(response["Location"])

    def finished(self, data: bytes, headers: Extra | None = None) -> str:
        """The path of a new upload that holds ``data``."""
        path = self.new(len(data), headers=headers)
        if data:
            response = self.patch(path, 0, data)
            assert response.status == 204, response
        return path

    def offset(self, path: str) -> int:
        """The offset in the response to HEAD; fails unless that is 200."""
        response = self.head(path)
        assert response.status == 200, response
        return int(response["Upload-Offset"])

    def stored(self, path: str) -> bytes:
        """The bytes of an upload, as they are stored."""
        return self.server.stored(id_of(path))

    def data_files(self) -> list[str]:
        """The ids of all uploads that are stored."""
        return self.server.uploads()

    def info(self, path: str) -> dict[str, object]:
        """The upload's ``.info``."""
        return self.server.record(id_of(path))

    def begin_patch(
        self,
        path: str,
        offset: int,
        body_length: int | None,
        sent: bytes = b"",
        headers: Extra | None = None,
    ) -> OpenPatch:
        """Begin a PATCH whose body is incomplete (``body_length`` None: chunked)."""
        return OpenPatch(self, path, offset, body_length=body_length, sent=sent, headers=headers)


class OpenPatch:
    """A PATCH in the middle of its body. Closing it cuts the connection."""

    def __init__(
        self,
        tus: Tus,
        path: str,
        offset: int,
        *,
        body_length: int | None,
        sent: bytes,
        headers: Extra | None,
    ) -> None:
        self.tus = tus
        self.path = path
        self.offset = offset
        self.received_to = offset
        self.chunked = body_length is None
        checked = {"upload-checksum", "trailer"} & {name.lower() for name in headers or {}}
        self._unverified_before = tus.server.unverified() if checked else None
        framing: dict[str, str | None] = (
            {"Transfer-Encoding": "chunked"}
            if body_length is None
            else {"Content-Length": str(body_length)}
        )
        self.connection = tus.connect()
        head = tus.patch_headers(offset, {**framing, **(headers or {})})
        self.connection.send_head("PATCH", path, head)
        if sent:
            self.send(sent)

    def send(self, data: bytes) -> None:
        # Refused meanwhile, the answer lies in the receive buffer although sending has failed.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(chunk(data) if self.chunked else data)
        self.received_to += len(data)

    def wait_stored(self, timeout: float = TIMEOUT) -> None:
        """Wait until all sent bytes are in the data file (without asking the server).

        Only for uploads whose bytes go to the file as they come. Of a bucket's server: until it has them, or until those of a
        chunk with a checksum wait where the server keeps such.
        """
        self._wait_for(self.received_to, timeout)

    def wait_stored_in_part(self) -> None:
        """Wait until some of the bytes are in the data file, as happens for bodies larger than a MiB."""
        self._wait_for(self.offset + 1, TIMEOUT)

    def _wait_for(self, size: int, timeout: float) -> None:
        server, before = self.tus.server, self._unverified_before
        if server.bucket is None or before is None:
            wait_for_size(server, self.path, size, timeout)
            return
        wanted = before + size - self.offset
        wait_until(lambda: server.unverified() >= wanted, f"{size} bytes", timeout)

    def response(self) -> Response:
        return self.connection.read_response("PATCH")

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def wait_for_size(server: ServerProcess, path: str, size: int, timeout: float = TIMEOUT) -> None:
    """Wait until an upload's data file has (at least) ``size`` bytes.

    Nothing signals that a file grew, so this polls every millisecond.
    """
    if server.bucket is not None:
        wait_until(lambda: len(server.stored(id_of(path))) >= size, f"{size} bytes", timeout)
        return
    file = server.data_file(id_of(path))
    wait_until(lambda: file.exists() and file.stat().st_size >= size, f"{size} bytes", timeout)
