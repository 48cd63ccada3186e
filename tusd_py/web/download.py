"""Downloads: which part of an upload a GET asks for, under which header fields, and how it is sent.

Conditional requests and ranges are those of RFC 9110. What a client once told about its file (name, type) is repeated to others
here, so it is treated as an attack: only types that no browser executes keep their name, and nothing of a file name gets out of
its quotation marks or into another directory. Not for: deciding who may download.
"""

from __future__ import annotations

import asyncio
import re
import time
import unicodedata
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from types import SimpleNamespace
from urllib.parse import quote

from starlette.types import Receive, Scope, Send

from tusd_py.protocol.headers import RawHeaders
from tusd_py.protocol.metadata import text_of
from tusd_py.storage.base import Reader

_ZERO_COPY = "http.response.zerocopysend"

# Images, sound and video that browsers show without executing anything; a "+" would let SVG and other XML in.
_SAFE_TYPE = re.compile(r"(?:image|audio|video)/(?!.*(?:svg|xml))[a-z0-9][a-z0-9.-]{0,63}")
_PLAIN_TEXT = re.compile(r'text/plain(?:[ \t]*;[ \t]*charset="?([a-z0-9._-]{1,40})"?)?[ \t]*')
# Enough for a browser's own image and media pages; no script, and an origin of its own.
_POLICY = (
    b"sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'"
)

_MAX_NAME_BYTES = 200
_KEPT_FORMAT_CHARACTERS = "\u200c\u200d"  # several scripts and emoji are spelled with these joiners
_RESERVED = re.compile(r'[<>:"|?*\x7f]')
_NOT_IN_FALLBACK = re.compile(r"[^A-Za-z0-9 !#$&'()+,.=@^_`{}~\[\]-]+")
_UNRESERVED = "!#$&+-.^_`|~"  # attr-char of RFC 8187 that quote() would escape

# One class for all that may stand before a tag: neighbours that share blanks would be tried in every division.
_ENTITY_TAG = re.compile(r'[ \t,]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?=,|\Z)')
_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE)
_FAR = 10**19  # more than any file has

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DATES = (
    re.compile(
        r"[A-Z][a-z]{2}, (?P<day>\d\d) (?P<month>[A-Z][a-z]{2}) (?P<year>\d{4}) (?P<time>\d\d:\d\d:\d\d) GMT"
    ),
    re.compile(
        r"[A-Z][a-z]{5,8}, (?P<day>\d\d)-(?P<month>[A-Z][a-z]{2})-(?P<year>\d\d) (?P<time>\d\d:\d\d:\d\d) GMT"
    ),
    re.compile(
        r"[A-Z][a-z]{2} (?P<month>[A-Z][a-z]{2}) (?P<day>[ \d]\d) (?P<time>\d\d:\d\d:\d\d) (?P<year>\d{4})"
    ),
)


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """The answer to a download: 200 and 206 send `count` bytes from `start` on, 304, 412 and 416 send none of the file.

    headers has Content-Length for 200 and 206 only; a text for 412 and 416 is the caller's.
    """

    status: int
    headers: RawHeaders
    start: int
    count: int


def plan_download(
    headers: Mapping[str, str],
    *,
    size: int,
    etag: str,
    last_modified: float,
    metadata: Mapping[str, bytes],
    method: str,
) -> DownloadPlan:
    """Decide what a request for a complete upload gets (RFC 9110, sections 13.2.2 and 14).

    headers: the request's, names in lower case. size: bytes. etag: as it stands in the field, with its quotation marks; a weak
    one (`W/"…"`) never matches If-Match and If-Range. last_modified: seconds since the epoch. metadata: the upload's, of which
    `filename` and `filetype` are used. Several ranges at once get the whole file, as do ranges in other units and malformed
    ones.
    """
    now = time.time()
    validators = _Validators(etag, int(min(last_modified, now)), now)
    fields: RawHeaders = [
        (b"etag", etag.encode("latin-1")),
        (b"last-modified", formatdate(validators.modified, usegmt=True).encode("ascii")),
        # A cache has to ask again: the upload may have been terminated, or be another owner's.
        (b"cache-control", b"private, no-cache"),
    ]
    refused = _precondition(headers, validators, method)
    if refused:
        return DownloadPlan(refused, fields, 0, 0)
    fields.append((b"accept-ranges", b"bytes"))
    start, count = 0, size
    partial = _range(headers, validators, size) if method == "GET" else None
    if partial is not None:
        start, count = partial
        if not count:
            return DownloadPlan(416, [*fields, (b"content-range", b"bytes */%d" % size)], 0, 0)
        fields.append((b"content-range", b"bytes %d-%d/%d" % (start, start + count - 1, size)))
    fields.append((b"content-length", b"%d" % count))
    fields += presentation(metadata)
    return DownloadPlan(200 if partial is None else 206, fields, start, count)


async def send_file(
    scope: Scope,
    send: Send,
    reader: Reader,
    start: int,
    count: int,
    *,
    receive: Receive | None = None,
) -> None:
    """Send `count` bytes of an upload from `start` on as the body of the response that was started.

    If they are in a file, the server sends them without a copy where it can (ASGI extension "Zero Copy Send"); otherwise they
    are sent piece by piece. With `receive` that second way ends early when the client disconnects; most servers otherwise
    swallow the rest without a word. The caller closes the reader.

    Raises StorageError or OSError when there are fewer bytes, or they cannot be read. What the client has got by then ends too
    early, so the server must close the connection, as they do when an application fails.
    """
    fd = reader.descriptor
    if count and fd is not None and _ZERO_COPY in (scope.get("extensions") or {}):
        try:
            await send(
                {
                    "type": _ZERO_COPY,
                    "file": SimpleNamespace(fileno=lambda: fd),
                    "offset": start,
                    "count": count,
                    "more_body": False,
                }
            )
        except asyncio.SendfileNotAvailableError:
            pass
        else:
            return
    gone = asyncio.ensure_future(_disconnection(receive)) if receive else None
    try:
        await _send_pieces(send, reader, start, count, gone)
    finally:
        if gone:
            gone.cancel()


async def _disconnection(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_pieces(
    send: Send, reader: Reader, start: int, count: int, gone: asyncio.Future[None] | None
) -> None:
    if not count:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    async with aclosing(reader.stream(start, count)) as pieces:
        async for piece in pieces:
            count -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": count > 0})
            if gone and gone.done():
                return


@dataclass(frozen=True, slots=True)
class _Validators:
    """What tells one state of the file from another. modified, now: seconds since the epoch."""

    etag: str
    modified: int
    now: float

    def matches_strongly(self, tags: str) -> bool:
        """If-Match: `*`, or a list with this very tag, neither being weak (RFC 9110, section 8.8.3.2)."""
        return tags.strip() == "*" or (
            not self.etag.startswith("W/") and self.etag in _entity_tags(tags)
        )

    def matches_weakly(self, tags: str) -> bool:
        """If-None-Match: `*`, or a list with this tag, weak or not."""
        wanted = self.etag.removeprefix("W/")
        return tags.strip() == "*" or any(
            tag.removeprefix("W/") == wanted for tag in _entity_tags(tags)
        )

    def still_holds(self, validator: str) -> bool:
        """If-Range: this very tag, or exactly this date (RFC 9110, section 13.1.5)."""
        if '"' in validator:
            return validator.strip() == self.etag and not self.etag.startswith("W/")
        # Within the second of its last change a file could change again, and the date would not tell.
        return _parse_date(validator) == self.modified and self.now - self.modified >= 1


def _precondition(headers: Mapping[str, str], validators: _Validators, method: str) -> int:
    """304 or 412, or 0 for a request to carry out: the order is that of RFC 9110, section 13.2.2."""
    reading = method in ("GET", "HEAD")
    if "if-match" in headers:
        if not validators.matches_strongly(headers["if-match"]):
            return 412
    elif "if-unmodified-since" in headers:
        date = _parse_date(headers["if-unmodified-since"])
        if date is not None and validators.modified > date:
            return 412
    if "if-none-match" in headers:
        if validators.matches_weakly(headers["if-none-match"]):
            return 304 if reading else 412
    elif reading and "if-modified-since" in headers:
        date = _parse_date(headers["if-modified-since"])
        if date is not None and validators.modified <= date:
            return 304
    return 0


def _range(
    headers: Mapping[str, str], validators: _Validators, size: int
) -> tuple[int, int] | None:
    """First byte and number of bytes; a number of 0 for a range that the file has nothing of, None for the whole file."""
    match = _RANGE.fullmatch(headers.get("range", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if "if-range" in headers and not validators.still_holds(headers["if-range"]):
        return None
    if not match[1]:
        # Of an empty file even a suffix has no first byte that Content-Range could name: it is the whole file.
        count = min(_number(match[2]), size)
        return (size - count, count) if size or not _number(match[2]) else None
    first = _number(match[1])
    last = _number(match[2]) if match[2] else _FAR
    if last < first or (size == 0 and first == 0):
        return None
    return first, max(min(last + 1, size) - first, 0)


def _number(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) < 19 else _FAR


def _entity_tags(value: str) -> list[str]:
    """The tags of a list, as far as it is well-formed."""
    tags: list[str] = []
    at = 0
    while match := _ENTITY_TAG.match(value, at):
        tags.append(match[1])
        at = match.end()
    return tags


def _parse_date(value: str) -> int | None:
    """An HTTP-date in one of its three forms (RFC 9110, section 5.6.7) as seconds since the epoch."""
    for form in _DATES:
        match = form.fullmatch(value.strip())
        if match is None or match["month"].lower() not in _MONTHS:
            continue
        year = int(match["year"])
        if len(match["year"]) == 2:
            # Two digits mean the past if they would else lie more than 50 years ahead.
            this_year = time.gmtime().tm_year
            year += this_year - this_year % 100
            year -= 100 if year > this_year + 50 else 0
        month = _MONTHS.index(match["month"].lower()) + 1
        hour, minute, second = map(int, match["time"].split(":"))
        try:
            minute_began = datetime(year, month, int(match["day"]), hour, minute, tzinfo=UTC)
        except ValueError:
            return None
        # 60 is a leap second, which counts as the next minute's first.
        return int(minute_began.timestamp()) + second if second <= 60 else None
    return None


def attachment(filename: bytes) -> str:
    """Content-Disposition of a file to store, by the name that a client called it."""
    return _disposition(b"attachment", filename).decode("ascii")


def presentation(metadata: Mapping[str, bytes]) -> RawHeaders:
    """Content-Type, Content-Disposition and what keeps browsers from executing the file."""
    content_type = _inline_type(metadata.get("filetype", b""))
    kind = b"attachment" if content_type is None else b"inline"
    return [
        (b"content-type", content_type or b"application/octet-stream"),
        (b"content-disposition", _disposition(kind, metadata.get("filename", b""))),
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", _POLICY),
    ]


def _inline_type(filetype: bytes) -> bytes | None:
    """The media type of something that a browser may show on its own, else None."""
    if len(filetype) > 200 or not filetype.isascii():
        return None
    declared = filetype.decode("ascii").lower()
    text = _PLAIN_TEXT.fullmatch(declared)
    if text:
        return b"text/plain; charset=" + (text[1] or "utf-8").encode("ascii")
    essence = declared.partition(";")[0].strip(" \t")
    return essence.encode("ascii") if _SAFE_TYPE.fullmatch(essence) else None


def _file_name(raw: bytes) -> str:
    """The file's own name in what a client called it, "" if nothing is left.

    No directories, control characters, bidirectional overrides (which make `exe.jpg` of `gpj.exe`) or characters that file
    systems reserve; no leading dot, and no end that Windows would drop.
    """
    last = raw.rstrip(b"/\\").replace(b"\\", b"/").rpartition(b"/")[2]
    text = "".join(filter(_may_stand_in_name, text_of(last)))
    text = _RESERVED.sub("_", text).strip(" .")
    return _shortened(text, _MAX_NAME_BYTES)


def _may_stand_in_name(character: str) -> bool:
    return character in _KEPT_FORMAT_CHARACTERS or unicodedata.category(character) not in (
        "Cc", "Cf", "Cs", "Cn", "Zl", "Zp",
    )  # fmt: skip


def _shortened(name: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, cut before the extension."""
    if len(name.encode()) <= limit:
        return name
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension.encode()) > 20:
        stem, dot, extension = name, "", ""
    room = limit - len((dot + extension).encode())
    return stem.encode()[:room].decode("utf-8", "ignore").rstrip(" .") + dot + extension


def _disposition(kind: bytes, filename: bytes) -> bytes:
    """`filename` for old clients, `filename*` for all others (RFC 6266, section 4.3, and RFC 8187)."""
    name = _file_name(filename)
    if not name:
        return kind
    # Accents come off; what NFKD brings back, such as a slash, goes with all that is not plain ASCII.
    letters = (c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    plain = _NOT_IN_FALLBACK.sub("_", "".join(letters)).strip(" .") or "download"
    encoded = quote(name, safe=_UNRESERVED)
    return kind + f"; filename=\"{plain}\"; filename*=UTF-8''{encoded}".encode("ascii")
