"""Request header fields as a mapping, and the numbers that tus writes in them.

Made from ASGI's raw list once a request. Values are decoded as Latin-1, since ASGI passes them as bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

RawHeaders = list[tuple[bytes, bytes]]
"""Header fields as ASGI has them: names in lower case."""

_MAX_DIGITS = 19

_ORDINARY = [
    "accept",
    "accept-encoding",
    "accept-language",
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "host",
    "origin",
    "referer",
    "tus-resumable",
    "upload-length",
    "upload-metadata",
    "upload-offset",
    "user-agent",
    "1.0.0",
    "application/offset+octet-stream",
    "*/*",
    "keep-alive",
]
_TEXTS = {text.encode(): text for text in _ORDINARY}
KNOWN: Mapping[bytes, bytes] = {raw: raw for raw in _TEXTS}
"""Names and values that most requests have, interned: thousands of connections share one object for each."""


class Headers(dict[str, str]):
    """Request header fields; names in lower case, repeated fields joined with a comma (RFC 9110, section 5.3).

    A field that may occur once but came twice thereby has a value that its parser refuses.
    """

    __slots__ = ()

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        super().__init__()
        repeated: dict[str, list[str]] | None = None
        for raw_name, raw_value in raw:
            name = _TEXTS.get(raw_name) or raw_name.decode("latin-1").lower()
            value = _TEXTS.get(raw_value) or raw_value.decode("latin-1").strip(" \t")
            if name not in self:
                self[name] = value
                continue
            # Joined at the end: joining at each repeat would take quadratic time.
            repeated = {} if repeated is None else repeated
            repeated.setdefault(name, [self[name]]).append(value)
        for name, values in (repeated or {}).items():
            self[name] = ", ".join(values)


def media_type(headers: Mapping[str, str]) -> str:
    """The media type of the body in lower case, without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def announces_trailer(headers: Mapping[str, str], name: str) -> bool:
    """Whether `Trailer` names a field (RFC 9110, section 6.6.2). name: in lower case."""
    announced = headers.get("trailer")
    return announced is not None and name in [each.strip().lower() for each in announced.split(",")]


def parse_digits(value: str) -> int:
    """A non-negative integer as tus writes it: ASCII digits only, at most 19 of them.

    Raises ValueError for anything else: signs, spaces, underscores, other scripts' digits, the empty string.
    """
    if not 0 < len(value) <= _MAX_DIGITS or not (value.isascii() and value.isdigit()):
        raise ValueError("not a non-negative integer")
    number = int(value)
    if number > 2**63 - 1:
        raise ValueError("number too large")
    return number
