"""The file name in `Content-Disposition` (RFC 6266), which a plain upload has in place of metadata."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

_CHARSETS = ("utf-8", "iso-8859-1")
"""Those that RFC 8187 lets a sender use, or did once."""
_LONGEST = 4096
"""Characters of a value. A name of 255 characters, each percent-encoded in four bytes, has 3060."""


def parse_filename(value: str) -> str | None:
    """The last segment of the file name, by `filename*` if it is there, else by `filename`; None without one.

    Parameters that are malformed or longer than 4 KiB are ignored. Continuations (`filename*0`, RFC 2231) are not part of
    RFC 6266 and are ignored too.

    value: the field, decoded as Latin-1. Bytes beyond ASCII in `filename` are read as UTF-8 where they are UTF-8.
    """
    plain = extended = ""
    for parameter in _parameters(value):
        name, _, text = parameter.partition("=")
        if len(text) > _LONGEST:
            continue
        match name.strip().lower():
            case "filename":
                plain = plain or _text_of(_unquoted(text.strip()))
            case "filename*":
                extended = extended or _decoded(_unquoted(text.strip()))
            case _:
                pass
    return _last_segment(extended or plain)


def _parameters(value: str) -> Iterator[str]:
    """What stands between semicolons that are in no quoted string; without what follows a quote that is never closed.

    Each character is looked at a fixed number of times: the field may have 60,000 semicolons after one quote.
    """
    pieces: list[str] = []
    is_open = False
    for piece in value.split(";")[1:]:
        pieces.append(piece)
        if _without_escapes(piece).count('"') % 2:
            is_open = not is_open
        if not is_open:
            yield ";".join(pieces)
            pieces.clear()


def _without_escapes(text: str) -> str:
    return text.replace("\\\\", "").replace('\\"', "")


def _unquoted(text: str) -> str:
    """The value of a token or a quoted string; empty if it is malformed.

    Only quotes and backslashes are unescaped: old clients send paths of Windows as they are.
    """
    if '"' not in text:
        return text
    inner = text[1:-1]
    if len(text) < 2 or not text.startswith('"') or '"' in _without_escapes(inner):
        return ""
    return "\\".join(part.replace('\\"', '"') for part in inner.split("\\\\"))


def _text_of(text: str) -> str:
    """A text that was decoded as Latin-1, as UTF-8 if it is UTF-8."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _decoded(text: str) -> str:
    """The text of an extended value (RFC 8187, section 3.2); empty if it is none, or none of its charset."""
    charset, _, rest = text.partition("'")
    _language, found, encoded = rest.partition("'")
    charset = charset.lower()
    if not found or charset not in _CHARSETS:
        return ""
    try:
        return unquote_to_bytes(encoded.encode("latin-1")).decode(charset)
    except UnicodeError:
        return ""


def _last_segment(path: str) -> str | None:
    return path.replace("\\", "/").rpartition("/")[2] or None
