"""Resumable Uploads for HTTP (draft-ietf-httpbis-resumable-upload-12): requests to commands, results to header fields.

The commands are those of `tus.py`, so everything behind them holds for both protocols. While the specification is a draft, its
iterations are told apart by an interop version; all that differs between them is in `VERSIONS`. The fields are structured
fields (RFC 9651); one with a value of another type is ignored, as if it were not there. Every function raises `ProtocolError`,
and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

import http_sf

from tusd_py.protocol import digests, disposition, errors, metadata, tus
from tusd_py.protocol.checksum import Checksum
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.headers import media_type
from tusd_py.protocol.tus import Append, Content, Creation

MEDIA_TYPE = "application/partial-upload"
RESUMPTION_SUPPORTED = 104
"""Status code of the interim responses."""

_PROBLEM_TYPES = "https://iana.org/assignments/http-problem-types#"
_MEDIA_TYPES_OF_CHUNKS = frozenset({MEDIA_TYPE, tus.MEDIA_TYPE})
"""They describe the body of a request, not the file."""
_LONGEST_ITEM = 1024
"""Characters of a field that is an Item. Longer ones take too much time to parse, and memory in the cache."""
_WITHOUT_CONTENT = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


@dataclass(frozen=True, slots=True)
class Version:
    """What an interop version does differently.

    Attributes:
        number: Goes into responses; None for requests without a version of this table, which get no interim responses.
        inverted: `Upload-Incomplete` stands in place of `Upload-Complete`, and a PATCH without it completes the upload.
        has_media_type: PATCH needs the media type `application/partial-upload`.
        has_progress: Interim responses tell the offset.
        lifetime: Key of `Upload-Limit` for the seconds that the upload will be kept; empty for versions without the field.
        appended: Status of the response to a PATCH that does not complete the upload.
    """

    number: int | None
    inverted: bool = False
    has_media_type: bool = True
    has_progress: bool = True
    lifetime: str = "max-age"
    appended: int = 204


# fmt: off
VERSIONS: Mapping[int, Version] = {
    3: Version(3, inverted=True, has_media_type=False, has_progress=False, lifetime="", appended=201),
    4: Version(4, has_media_type=False, has_progress=False, lifetime="", appended=201),
    5: Version(5, has_media_type=False, lifetime="", appended=201),
    6: Version(6, lifetime="expires", appended=201),
    7: Version(7),
    8: Version(8),
    9: Version(9),
}
# fmt: on
UNVERSIONED = replace(VERSIONS[9], number=None)
_UNVERSIONED_INVERTED = replace(VERSIONS[3], number=None)


class Limits(NamedTuple):
    """The limits of an upload, for `Upload-Limit`: bytes, and seconds that it will be kept. None for no limit."""

    max_size: int | None = None
    max_age: int | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """The response to a request for the offset. offset and length in bytes, None while unknown."""

    offset: int | None
    length: int | None
    complete: bool
    limits: Limits


# Requests


def version_of(method: str, headers: Mapping[str, str]) -> Version | None:
    """The version that a request speaks; None for a request of tus, or of either protocol."""
    if "tus-resumable" in headers or method == "OPTIONS":
        return None
    given = headers.get("upload-draft-interop-version")
    inverted = "upload-incomplete" in headers and "upload-complete" not in headers
    if given is not None:
        known = VERSIONS.get(_integer(headers, "upload-draft-interop-version") or 0)
        if known is not None:
            return known
    elif not (
        inverted
        or "upload-complete" in headers
        or (method == "PATCH" and media_type(headers) == MEDIA_TYPE)
    ):
        return None
    return _UNVERSIONED_INVERTED if inverted else UNVERSIONED


def creates(method: str) -> bool:
    """Whether a request with this method can create an upload ("Upload Creation")."""
    return method not in _WITHOUT_CONTENT


def parse_creation(headers: Mapping[str, str], version: Version, *, name: str = "") -> Creation:
    """Parse a request that creates an upload ("Upload Creation").

    Args:
        headers: Names in lower case.
        version: The version that it speaks.
        name: The file name, if no header field has one.

    Raises:
        ProtocolError: 400 for a missing `Upload-Complete`, lengths that contradict each other, or invalid metadata.
    """
    completes = _completeness(headers, version)
    if completes is None:
        raise errors.invalid_completeness(_completeness_field(version))
    content = _content(headers)
    length = _declared_length(headers, 0, content.length, completes=completes)
    if length is not None and content.length is not None and content.length > length:
        raise errors.inconsistent_length("the request carries more bytes than Upload-Length")
    pairs, header = _metadata(headers, name)
    return Creation(
        length=length,
        metadata=pairs,
        metadata_header=header,
        concat=None,
        concat_header="",
        content=None if content.length == 0 and not content.verified else content,
        repr_digest=_repr_digest(headers),
        wanted_digest=_wanted_digest(headers),
        completes=completes,
    )


def parse_append(headers: Mapping[str, str], version: Version) -> Append:
    """Parse a PATCH ("Upload Append").

    `Repr-Digest` is that of the whole upload if the request completes it. Otherwise it is ignored, as it may be meant for the
    body (RFC 9530, section 3.1).

    Raises:
        ProtocolError: 415 for another media type, 400 for missing or invalid fields.
    """
    if version.has_media_type and media_type(headers) != MEDIA_TYPE:
        raise errors.not_partial_upload()
    offset = provided_offset(headers)
    if offset is None:
        raise errors.invalid_offset()
    completes = _completeness(headers, version)
    if completes is None and not version.inverted:
        raise errors.invalid_completeness(_completeness_field(version))
    content = _content(headers)
    completes = completes is not False
    length = _declared_length(headers, offset, content.length, completes=completes)
    return Append(offset, length, content, completes, _repr_digest(headers) if completes else "")


def check_retrieval(headers: Mapping[str, str]) -> None:
    """Raise a 400 for a request for the offset that carries fields of an upload ("Offset Retrieval")."""
    for name in ("Upload-Offset", "Upload-Complete", "Upload-Incomplete"):
        if name.lower() in headers:
            raise errors.bad_request(f"a request for the offset has no {name} header")


def provided_offset(headers: Mapping[str, str]) -> int | None:
    """`Upload-Offset` in bytes; None if it is missing or no integer of at least 0."""
    return _integer(headers, "upload-offset")


def _completeness_field(version: Version) -> str:
    return "Upload-Incomplete" if version.inverted else "Upload-Complete"


def _completeness(headers: Mapping[str, str], version: Version) -> bool | None:
    value = _item(headers, _completeness_field(version).lower())
    if not isinstance(value, bool):
        return None
    return value is not version.inverted


def _integer(headers: Mapping[str, str], name: str) -> int | None:
    value = _item(headers, name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _item(headers: Mapping[str, str], name: str) -> object:
    """The value of an Item (RFC 9651, section 4.2.3); None if the field is missing, no Item, or too long.

    Parameters are ignored.
    """
    given = headers.get(name)
    return None if given is None or len(given) > _LONGEST_ITEM else _parsed(given)


# Most requests have the same few values.
@lru_cache(maxsize=256)
def _parsed(value: str) -> object:
    try:
        found = http_sf.parse(value.encode("latin-1"), tltype="item")
    except (http_sf.StructuredFieldError, UnicodeEncodeError):
        return None
    return found[0] if isinstance(found, tuple) else found


def _declared_length(
    headers: Mapping[str, str], offset: int, content_length: int | None, *, completes: bool
) -> int | None:
    """The length of the upload in bytes as far as the request tells it ("Length"). Raises a 400 if it tells two."""
    stated = _integer(headers, "upload-length")
    if not completes or content_length is None:
        return stated
    if stated is not None and stated != offset + content_length:
        raise errors.inconsistent_length("Upload-Length is not what Content-Length completes")
    return offset + content_length


def _content(headers: Mapping[str, str]) -> Content:
    return tus.content_of(headers, digests.CONTENT.lower(), _content_digest, _trailing_digest)


def _content_digest(value: str) -> Checksum | None:
    return digests.parse(value, digests.CONTENT)


def _trailing_digest(trailers: Mapping[str, str]) -> Checksum:
    digest = _content_digest(trailers.get(digests.CONTENT.lower(), ""))
    if digest is None:
        raise errors.invalid_digest(digests.CONTENT)
    return digest


def _repr_digest(headers: Mapping[str, str]) -> str:
    """The digests of the whole upload as they stand in its record; empty without any that can be verified."""
    given = headers.get(digests.REPRESENTATION.lower())
    found = () if given is None else tuple(digests.each_of(given, digests.REPRESENTATION))
    return digests.serialize(*found) if found else ""


def _wanted_digest(headers: Mapping[str, str]) -> str:
    """The algorithm of the digest that the client wants of the whole upload; empty without one of ours."""
    given = headers.get("want-repr-digest")
    return "" if given is None else digests.wanted(given) or ""


def _metadata(headers: Mapping[str, str], name: str) -> tuple[dict[str, bytes], str]:
    """The metadata of a new upload, and the same as an `Upload-Metadata` field of tus.

    A client may send that field here too. The file name and the media type of the file are added if it lacks them.
    """
    header = headers.get("upload-metadata", "")
    pairs = metadata.parse(header)
    given = len(pairs)
    name = disposition.parse_filename(headers.get("content-disposition", "")) or name
    if name:
        pairs.setdefault("filename", name.encode("utf-8", "replace"))
    kind = headers.get("content-type", "")
    if kind and media_type(headers) not in _MEDIA_TYPES_OF_CHUNKS:
        pairs.setdefault("filetype", kind.encode("utf-8"))
    return pairs, header if len(pairs) == given else metadata.serialize(pairs)


# Responses


def version_header(version: Version) -> dict[str, str]:
    """The version that the response speaks, as in the request; no field if the request had none of the table."""
    if version.number is None:
        return {}
    return {"Upload-Draft-Interop-Version": str(version.number)}


def completeness_header(version: Version, *, complete: bool) -> dict[str, str]:
    """In responses to creations and appends: whether the response is that of the complete upload ("Completeness")."""
    return {_completeness_field(version): _BOOLEANS[complete is not version.inverted]}


_BOOLEANS = {value: http_sf.ser(value) for value in (False, True)}


def limit_header(version: Version, limits: Limits) -> dict[str, str]:
    """`Upload-Limit` ("Limits"); no field in versions that do not have it."""
    if not version.lifetime:
        return {}
    return {"Upload-Limit": _serialized(limits, version.lifetime)}


# New uploads have the same limits, mostly.
@lru_cache(maxsize=256)
def _serialized(limits: Limits, lifetime: str) -> str:
    given = {"max-size": limits.max_size, lifetime: limits.max_age}
    known = {key: value for key, value in given.items() if value is not None}
    return http_sf.ser({key: (value, {}) for key, value in (known or _NO_LIMIT).items()})


_NO_LIMIT = {"min-size": 0}
"""The field cannot be empty ("Limits")."""


def options_headers(limits: Limits) -> dict[str, str]:
    """The fields of the response to OPTIONS."""
    return {"Accept-Patch": MEDIA_TYPE, **limit_header(UNVERSIONED, limits)}


def status_headers(version: Version, status: Status) -> dict[str, str]:
    """The fields of the response to a request for the offset ("Offset Retrieval")."""
    fields = {
        "Cache-Control": "no-store",
        **completeness_header(version, complete=status.complete),
        **limit_header(version, status.limits),
    }
    if status.offset is not None:
        fields["Upload-Offset"] = str(status.offset)
    if status.length is not None:
        fields["Upload-Length"] = str(status.length)
    return fields


def result_headers(
    version: Version, *, offset: int, complete: bool, limits: Limits
) -> dict[str, str]:
    """The fields of the response to a creation or an append that was carried out; offset in bytes."""
    return {
        "Upload-Offset": str(offset),
        **completeness_header(version, complete=complete),
        **limit_header(version, limits),
        **version_header(version),
    }


def announcement(version: Version, location: str, limits: Limits) -> dict[str, str]:
    """The fields of the interim response that tells where the upload can be resumed (status 104)."""
    return {"Location": location, **limit_header(version, limits), **version_header(version)}


def progress(version: Version, offset: int) -> dict[str, str]:
    """The fields of an interim response that acknowledges bytes (status 104); offset in bytes."""
    return {"Upload-Offset": str(offset), **version_header(version)}


# Refusals


@dataclass(frozen=True, slots=True)
class Problem:
    """Problem details (RFC 9457). members: in the order in which they are serialized."""

    status: int
    members: Mapping[str, object]


_INCONSISTENT_LENGTH = (400, "inconsistent-upload-length", "Inconsistent Upload Length Values")
_MISMATCHED_DIGEST = (400, "digest-mismatched-values", "Mismatched Digest Values")
_TYPES: Mapping[str, tuple[int, str, str]] = {
    "ERR_MISMATCHED_OFFSET": (409, "mismatching-upload-offset", "Mismatching Upload Offset"),
    "ERR_INCONSISTENT_UPLOAD_LENGTH": _INCONSISTENT_LENGTH,
    "ERR_INVALID_UPLOAD_LENGTH": _INCONSISTENT_LENGTH,
    "ERR_UPLOAD_SIZE_EXCEEDED": _INCONSISTENT_LENGTH,
    "ERR_UPLOAD_COMPLETED": (400, "completed-upload", "Upload Is Completed"),
    "ERR_CHECKSUM_MISMATCH": _MISMATCHED_DIGEST,
    "ERR_DIGEST_MISMATCH": _MISMATCHED_DIGEST,
}
"""Status, registered problem type and title of refusals, by code ("Problem Types")."""


def problem_of(refusal: ProtocolError, headers: Mapping[str, str]) -> Problem:
    """The problem details of a refusal. headers: of the request."""
    status, kind, title = _TYPES.get(refusal.code, (refusal.status, "", ""))
    members: dict[str, object] = {
        "type": f"{_PROBLEM_TYPES}{kind}" if kind else "about:blank",
        "title": title or _phrase(status),
        "status": status,
        "detail": refusal.message,
        "code": refusal.code,
    }
    if refusal.code == "ERR_MISMATCHED_OFFSET":
        members["expected-offset"] = int(refusal.headers["Upload-Offset"])
        members["provided-offset"] = provided_offset(headers)
    return Problem(status, members)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
