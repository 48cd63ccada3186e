"""The status line and the header fields of a response, serialized (RFC 9112, section 4).

Names and values are checked, so that no value can end its line and begin another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import NamedTuple

_REASONS = {
    104: b"Upload Resumption Supported",
    **{status.value: status.phrase.encode() for status in HTTPStatus},
}
_STATUS_LINES = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b""))
    for status in range(100, 600)
}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_is_name = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_CONTROLS = bytes([*range(9), *range(10, 32), 127])
"""Characters that no field may contain, except for the two that end it."""
_CONNECTION_FIELDS = frozenset(
    {b"content-length", b"transfer-encoding", b"trailer", b"upgrade", b"connection"}
)
"""Fields that say how the response is framed or what happens to the connection."""

_prefixes: dict[bytes, bytes] = {}
"""The beginning of a line, by the name of its field: of names that were checked and are no connection fields."""
_MOST_PREFIXES = 256


class Head(NamedTuple):
    """The head of a response.

    length: of the body in bytes, None for one without a length. chunked: whether that is sent in chunks, or ends with the
    connection. closes: whether it is the last response.
    """

    content: bytes
    length: int | None
    chunked: bool
    closes: bool


def serialize(
    status: int,
    fields: Iterable[tuple[bytes, bytes]],
    *,
    has_body: bool,
    keep_alive: bool,
    takes_chunks: bool = True,
) -> Head:
    """The head with these fields (names in lower case), framing included.

    has_body: whether the response has a body, so that one without Content-Length is sent in chunks. keep_alive: whether the
    connection stays, unless the fields say otherwise. takes_chunks: False for a client of HTTP/1.0, for which a body without a
    length ends with the connection (RFC 9112, section 6.1). Raises ValueError for a field that cannot be sent.
    """
    parts = [_STATUS_LINES[status]]
    lines = 1
    length: int | None = None
    chunked = closes = False
    for name, value in fields:
        prefix = _prefixes.get(name) or _prefix_of(name)
        if prefix is None:
            prefix = name + b": "
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                if not takes_chunks:
                    continue
                chunked = value.lower() == b"chunked"
            elif name == b"connection":
                closes = b"close" in [token.strip().lower() for token in value.split(b",")]
        parts += (prefix, value, b"\r\n")
        lines += 1
    if not keep_alive and not closes:
        closes = True
        parts.append(b"connection: close\r\n")
        lines += 1
    without_length = length is None and not chunked and has_body
    if without_length and takes_chunks:
        chunked = True
        parts.append(b"transfer-encoding: chunked\r\n")
        lines += 1
    parts.append(b"\r\n")
    content = b"".join(parts)
    if len(content) - len(content.translate(None, _CONTROLS)) != 2 * lines + 2:
        raise ValueError("a header field of the response contains a control character")
    return Head(content, None if chunked or without_length else length or 0, chunked, closes)


def _prefix_of(name: bytes) -> bytes | None:
    """None for a connection field. Raises ValueError for what is no name of a field."""
    if name in _CONNECTION_FIELDS:
        return None
    if _is_name(name) is None:
        raise ValueError(f"{name!r} is not the name of a header field")
    prefix = name + b": "
    if len(_prefixes) < _MOST_PREFIXES:
        _prefixes[name] = prefix
    return prefix
