"""tus 1.0.0: parse the header fields of a request into a command, and serialize a result to header fields.

Only header fields are checked here; the state of the upload is checked in `uploads/`. Every function raises the
`ProtocolError` that the specification asks for, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import NamedTuple

from tusd_py.protocol import checksum as checksums
from tusd_py.protocol import concat as concats
from tusd_py.protocol import errors, metadata
from tusd_py.protocol.checksum import Checksum
from tusd_py.protocol.concat import Final, Partial
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.headers import announces_trailer, media_type, parse_digits

VERSION = "1.0.0"
MEDIA_TYPE = "application/offset+octet-stream"
CHECKSUM_TRAILER = "upload-checksum"

_VERSIONED_METHODS = frozenset({"POST", "PATCH", "DELETE"})
_OVERRIDABLE = frozenset({"PATCH", "DELETE", "HEAD", "GET", "OPTIONS", "POST"})


def trailing_checksum(trailers: Mapping[str, str]) -> Checksum:
    """The checksum in the trailer fields, as announced by `Trailer` ("checksum-trailer"). Raises a 400 if it is missing."""
    if CHECKSUM_TRAILER not in trailers:
        raise errors.invalid_checksum("the announced trailer did not come")
    return checksums.parse(trailers[CHECKSUM_TRAILER])


class Content(NamedTuple):
    """The body of a request that carries bytes of an upload.

    length: in bytes; None if the request does not declare it. checksum: from a header field. checksum_in_trailer: it follows in
    a trailer field instead; read_trailer: makes it of the trailer fields.
    """

    length: int | None
    checksum: Checksum | None
    checksum_in_trailer: bool
    read_trailer: Callable[[Mapping[str, str]], Checksum] = trailing_checksum

    @property
    def verified(self) -> bool:
        """Whether the bytes count only after their checksum was verified."""
        return self.checksum is not None or self.checksum_in_trailer


class Creation(NamedTuple):
    """POST: a new upload. length is None for a deferred length and for a final; content is None without a body.

    unwanted_body: the error if the body, whose length is not declared and which is no content of an upload, is not empty.
    repr_digest: of the whole upload, to be verified when it is complete (`Repr-Digest`). wanted_digest: the algorithm of the
    digest that the response to its completion carries. completes: whether the request says that the upload ends with its body;
    None if the upload ends at its length, as in tus.
    """

    length: int | None
    metadata: dict[str, bytes]
    metadata_header: str
    concat: Partial | Final | None
    concat_header: str
    content: Content | None
    unwanted_body: ProtocolError | None = None
    repr_digest: str = ""
    wanted_digest: str = ""
    completes: bool | None = None


class Append(NamedTuple):
    """PATCH: bytes at `offset`; `length` is the upload's length when the request declares it.

    completes, repr_digest: see `Creation`.
    """

    offset: int
    length: int | None
    content: Content
    completes: bool | None = None
    repr_digest: str = ""


class Status(NamedTuple):
    """The response to HEAD. offset and length in bytes, None while unknown; expires in seconds since the epoch."""

    offset: int | None
    length: int | None
    deferred: bool
    metadata_header: str
    concat_header: str
    expires: float | None


def effective_method(method: str, headers: Mapping[str, str]) -> str:
    """The method, or for a POST the one in `X-HTTP-Method-Override`. Raises a 400 for an unknown one."""
    override = headers.get("x-http-method-override")
    if method != "POST" or override is None:
        return method
    wanted = override.upper()
    if wanted not in _OVERRIDABLE:
        raise errors.bad_request("X-HTTP-Method-Override names a method that is not known here")
    return wanted


def check_version(method: str, headers: Mapping[str, str]) -> None:
    """Raise a 412 if `Tus-Resumable` is present and not 1.0.0, or missing where it is required ("Tus-Resumable")."""
    given = headers.get("tus-resumable")
    if given == VERSION or method == "OPTIONS":
        return
    if given is not None or method in _VERSIONED_METHODS:
        raise errors.unsupported_version(VERSION)


def parse_creation(headers: Mapping[str, str], *, max_parts: int) -> Creation:
    """Parse a POST ("Creation", "Creation With Upload", "Concatenation"). Raises a 400 or 415."""
    concat_header = headers.get("upload-concat", "")
    concat = concats.parse(concat_header, max_parts=max_parts) if concat_header else None
    final = isinstance(concat, Final)
    length = _length_of_creation(headers, final=final)
    metadata_header = headers.get("upload-metadata", "")
    pairs = metadata.parse(metadata_header)
    content, unwanted = _body_of_creation(headers, final=final)
    return Creation(length, pairs, metadata_header, concat, concat_header, content, unwanted)


def parse_append(headers: Mapping[str, str]) -> Append:
    """Parse a PATCH. Raises a 400 for invalid numbers and checksums, a 415 for another media type."""
    if media_type(headers) != MEDIA_TYPE:
        raise errors.invalid_content_type()
    try:
        offset = parse_digits(headers.get("upload-offset", ""))
    except ValueError:
        raise errors.invalid_offset() from None
    length = _number(headers["upload-length"]) if "upload-length" in headers else None
    return Append(offset, length, _content(headers))


def _length_of_creation(headers: Mapping[str, str], *, final: bool) -> int | None:
    if final:
        if "upload-length" in headers or "upload-defer-length" in headers:
            raise errors.contradictory_length(
                "a final upload's length is the sum of its parts: leave Upload-Length out"
            )
        return None
    deferred = headers.get("upload-defer-length")
    if deferred is not None:
        if deferred != "1" or "upload-length" in headers:
            raise errors.invalid_defer_length()
        return None
    return _number(headers.get("upload-length", ""))


def _number(value: str) -> int:
    try:
        return parse_digits(value)
    except ValueError:
        raise errors.invalid_length() from None


def _body_of_creation(
    headers: Mapping[str, str], *, final: bool
) -> tuple[Content | None, ProtocolError | None]:
    """The content of a creation, and `Creation.unwanted_body`. Raises the refusal of a body that is no content."""
    if media_type(headers) == MEDIA_TYPE and not final:
        return _content(headers), None
    has_bytes = headers.get("content-length", "0") != "0"
    if not has_bytes and "transfer-encoding" not in headers:
        return None, None
    refusal = errors.invalid_content_type()
    if final:
        refusal = errors.invalid_concat("the creation of a final upload has no body")
    if has_bytes:
        # Refused rather than dropped: the client would assume that the bytes are stored.
        raise refusal
    return None, refusal


def _content(headers: Mapping[str, str]) -> Content:
    return content_of(headers, CHECKSUM_TRAILER, checksums.parse, trailing_checksum)


def content_of(
    headers: Mapping[str, str],
    field: str,
    parse: Callable[[str], Checksum | None],
    read_trailer: Callable[[Mapping[str, str]], Checksum],
) -> Content:
    """The body that a request announces. field: of the checksum, in lower case; parse: parses it. Raises a 400."""
    declared = headers.get("content-length")
    try:
        length = None if declared is None else parse_digits(declared)
    except ValueError:
        raise errors.bad_request("invalid Content-Length header") from None
    value = headers.get(field)
    if value is not None:
        return Content(length, parse(value), checksum_in_trailer=False, read_trailer=read_trailer)
    return Content(length, None, announces_trailer(headers, field), read_trailer)


def options_headers(extensions: Iterable[str], *, max_size: int) -> dict[str, str]:
    """The header fields of the response to OPTIONS ("OPTIONS"); max_size in bytes, 0 for no limit."""
    names = list(extensions)
    fields = {"Tus-Version": VERSION, "Tus-Extension": ",".join(names)}
    if max_size:
        fields["Tus-Max-Size"] = str(max_size)
    if "checksum" in names:
        fields["Tus-Checksum-Algorithm"] = checksums.SUPPORTED
    return fields


def status_headers(status: Status) -> dict[str, str]:
    """The header fields of the response to HEAD ("HEAD", "Expiration", "Concatenation")."""
    fields: dict[str, str] = {"Cache-Control": "no-store"}
    if status.offset is not None:
        fields["Upload-Offset"] = str(status.offset)
    if status.length is not None:
        fields["Upload-Length"] = str(status.length)
    elif status.deferred:
        fields["Upload-Defer-Length"] = "1"
    if status.metadata_header:
        fields["Upload-Metadata"] = status.metadata_header
    if status.concat_header:
        fields["Upload-Concat"] = status.concat_header
    fields.update(expires_header(status.expires))
    return fields


def expires_header(expires: float | None) -> dict[str, str]:
    """`Upload-Expires` as IMF-fixdate; expires in seconds since the epoch, None for no field."""
    return {} if expires is None else {"Upload-Expires": _date(int(expires))}


@lru_cache(maxsize=64)
def _date(seconds: int) -> str:
    # Cached because uploads that change in the same second expire in the same second.
    return formatdate(seconds, usegmt=True)
