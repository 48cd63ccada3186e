"""The requests of a load generator in the protocols that a server may speak: heads of requests, and the replies to expect."""

from __future__ import annotations

import base64
from typing import NamedTuple

_MEDIA_TYPE_OF_FILES = b"application/octet-stream"
_TYPE_OF_CHUNKS = b"Content-Type: application/offset+octet-stream\r\n"


class Head(NamedTuple):
    """The head of a request. text: with the empty line. expect: the status that the reply must have."""

    text: bytes
    expect: int


class Tus:
    """tus 1.0.0. place: `host:port`."""

    def __init__(self, place: bytes) -> None:
        self._common = b"Host: %b\r\nTus-Resumable: 1.0.0\r\n" % place

    def create(self, path: bytes, length: int, size: int, name: bytes) -> Head:
        """Create an upload of `length` bytes that is called `name`, with its first `size` bytes."""
        head = (
            b"POST %b HTTP/1.1\r\n%bUpload-Length: %d\r\nUpload-Metadata: filename %b,filetype %b\r\n"
            b"%bContent-Length: %d\r\n\r\n"
        ) % (
            path,
            self._common,
            length,
            base64.b64encode(name),
            base64.b64encode(_MEDIA_TYPE_OF_FILES),
            _TYPE_OF_CHUNKS if size else b"",
            size,
        )
        return Head(head, 201)

    def append(self, path: bytes, offset: int, size: int, *, length: int, digest: bytes) -> Head:
        """Append `size` bytes to an upload of `length` bytes. digest: their SHA-256 in base64; empty to send none."""
        checksum = b"Upload-Checksum: sha256 %b\r\n" % digest if digest else b""
        head = b"PATCH %b HTTP/1.1\r\n%b%b%bUpload-Offset: %d\r\nContent-Length: %d\r\n\r\n" % (
            path,
            self._common,
            _TYPE_OF_CHUNKS,
            checksum,
            offset,
            size,
        )
        return Head(head, 204)

    def ask(self, path: bytes) -> Head:
        """Ask for the offset."""
        return Head(b"HEAD %b HTTP/1.1\r\n%b\r\n" % (path, self._common), 200)


class Ietf:
    """The IETF's resumable uploads, with interim responses, which only clients that name an interop version get."""

    def __init__(self, place: bytes) -> None:
        self._common = b"Host: %b\r\nUpload-Draft-Interop-Version: 9\r\n" % place

    def create(self, path: bytes, length: int, size: int, name: bytes) -> Head:
        """Create an upload of `length` bytes that is called `name`, with its first `size` bytes."""
        head = (
            b'POST %b HTTP/1.1\r\n%bUpload-Complete: ?%d\r\nContent-Disposition: attachment; filename="%b"\r\n'
            b"Content-Type: %b\r\n%bContent-Length: %d\r\n\r\n"
        ) % (
            path,
            self._common,
            size == length,
            name,
            _MEDIA_TYPE_OF_FILES,
            # Otherwise Content-Length tells it.
            b"" if size == length else b"Upload-Length: %d\r\n" % length,
            size,
        )
        return Head(head, 201)

    def append(self, path: bytes, offset: int, size: int, *, length: int, digest: bytes) -> Head:
        """Append `size` bytes to an upload of `length` bytes. digest: their SHA-256 in base64; empty to send none."""
        checksum = b"Content-Digest: sha-256=:%b:\r\n" % digest if digest else b""
        completes = offset + size == length
        head = (
            b"PATCH %b HTTP/1.1\r\n%bContent-Type: application/partial-upload\r\n%b"
            b"Upload-Complete: ?%d\r\nUpload-Offset: %d\r\nContent-Length: %d\r\n\r\n"
        ) % (path, self._common, checksum, completes, offset, size)
        return Head(head, 201 if completes else 204)

    def ask(self, path: bytes) -> Head:
        """Ask for the offset."""
        return Head(b"HEAD %b HTTP/1.1\r\n%b\r\n" % (path, self._common), 204)


DIALECTS: dict[str, type[Tus | Ietf]] = {"tus": Tus, "ietf": Ietf}
