"""The file name in `Content-Disposition` (RFC 6266), which a plain upload has in place of metadata."""

from __future__ import annotations

import re
from email.message import Message

_FIELD = "content-disposition"
_CHARSETS = ("utf-8", "iso-8859-1")
"""Those that RFC 8187 lets a sender use, or did once."""
_is_plain = re.compile(r'[a-z-]+; filename="([ !#-\[\]-~]+)"').fullmatch
"""Matches what most clients send, which needs no parser: one ASCII name without escapes."""


def filename(value: str) -> str | None:
    """The last segment of the file name, by `filename*` if it is there, else by `filename`; None without one.

    value: the field, decoded as Latin-1. Bytes beyond ASCII in `filename` are read as UTF-8 where they are UTF-8.
    """
    if (simple := _is_plain(value)) is not None:
        return _last_segment(simple[1])
    message = Message()
    message[_FIELD] = value
    plain = extended = ""
    for key, parameter in message.get_params([], _FIELD)[1:]:
        if key.lower() != "filename":
            continue
        found: object = parameter
        if isinstance(found, tuple):
            charset, _language, text = found
            extended = extended or _decoded(text, str(charset).lower())
        elif isinstance(found, str):
            plain = plain or _decoded(found, "utf-8") or found
    return _last_segment(extended or plain)


def _last_segment(path: str) -> str | None:
    return path.replace("\\", "/").rpartition("/")[2] or None


def _decoded(text: str, charset: str) -> str:
    """The text of bytes that were decoded as Latin-1; empty if they are no text of this charset."""
    if charset not in _CHARSETS:
        return ""
    try:
        return text.encode("latin-1").decode(charset)
    except UnicodeError:
        return ""
