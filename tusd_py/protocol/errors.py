"""The table of refusals: status, code, text and header fields of every error response of this server.

A row is one `Refusal`, or one `RefusalWith` where a value is filled in at `{}`. To refuse a request, call the row and raise
the result; the web layer turns it into the response:

    raise errors.not_found()
    raise errors.mismatched_offset(upload.offset)

Programs match on the code (`ERR_…`, where tusd has the same error, its code); the text is for people, and never contains an
error text of the operating system. To add a refusal, add a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Value = TypeVar("_Value", str, int)


class ProtocolError(Exception):
    """A request that is refused or failed, with the response to send.

    status: HTTP status code. code: stable name for programs, `ERR_…`. message: one sentence for people. headers: header fields
    of the response besides the usual ones.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.headers: dict[str, str] = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row of the table; call it for the error to raise."""

    status: int
    code: str
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> ProtocolError:
        return ProtocolError(self.status, self.code, self.text, self.headers)


@dataclass(frozen=True)
class RefusalWith(Generic[_Value]):
    """A row with `{}` in its text or header fields; call it with the value that goes there."""

    status: int
    code: str
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, value: _Value) -> ProtocolError:
        headers = {name: text.format(value) for name, text in self.headers.items()}
        return ProtocolError(self.status, self.code, self.text.format(value), headers)


DUPLICATE_UPLOAD = "ERR_DUPLICATE_UPLOAD"
"""The code of a creation refused as a duplicate; the hook that detects duplicates words the response."""
_BEARER = 'Bearer realm="uploads"'
"""The challenge of RFC 6750, section 3."""

# fmt: off

# Header fields that do not parse (tus 1.0.0)
unsupported_version = RefusalWith[str](
    412, "ERR_UNSUPPORTED_VERSION", "missing or unsupported Tus-Resumable header; this server speaks {}", {"Tus-Version": "{}"})
invalid_offset = Refusal(400, "ERR_INVALID_OFFSET", "missing or invalid Upload-Offset header; give a non-negative integer")
invalid_length = Refusal(400, "ERR_INVALID_UPLOAD_LENGTH", "missing or invalid Upload-Length header")
contradictory_length = RefusalWith[str](400, "ERR_INVALID_UPLOAD_LENGTH", "{}")
invalid_defer_length = Refusal(
    400, "ERR_INVALID_UPLOAD_LENGTH_DEFER", "invalid Upload-Defer-Length header; it must be 1 and excludes Upload-Length")
invalid_metadata = RefusalWith[str](400, "ERR_INVALID_METADATA", "invalid Upload-Metadata header: {}")
invalid_concat = RefusalWith[str](400, "ERR_INVALID_CONCAT", "invalid Upload-Concat header: {}")
invalid_checksum = RefusalWith[str](400, "ERR_INVALID_CHECKSUM", "invalid Upload-Checksum header: {}")
unsupported_checksum = RefusalWith[str](
    400, "ERR_UNSUPPORTED_CHECKSUM_ALGORITHM", "unsupported checksum algorithm; this server knows {}",
    {"Tus-Checksum-Algorithm": "{}"})
invalid_content_type = Refusal(415, "ERR_INVALID_CONTENT_TYPE", "Content-Type must be application/offset+octet-stream")
method_not_allowed = RefusalWith[str](
    405, "ERR_METHOD_NOT_ALLOWED", "method not allowed; this resource knows {}", {"Allow": "{}"})
bad_request = RefusalWith[str](400, "ERR_BAD_REQUEST", "{}")

# Header fields that do not parse (Resumable Uploads for HTTP)
invalid_completeness = RefusalWith[str](400, "ERR_INVALID_UPLOAD_COMPLETE", "missing or invalid {} header; it must be ?0 or ?1")
inconsistent_length = RefusalWith[str](400, "ERR_INCONSISTENT_UPLOAD_LENGTH", "{}")
invalid_digest = RefusalWith[str](
    400, "ERR_INVALID_DIGEST", "invalid {} header; it must be a dictionary with digests of sha-256 or sha-512")
other_digest = Refusal(
    400, "ERR_INVALID_DIGEST", "Repr-Digest is not the one that the upload was announced or completed with")
not_partial_upload = Refusal(415, "ERR_INVALID_CONTENT_TYPE", "Content-Type must be application/partial-upload")

# The upload's state
# 404 also for an upload that this client may not know of.
not_found = Refusal(404, "ERR_UPLOAD_NOT_FOUND", "upload not found")
gone = Refusal(410, "ERR_UPLOAD_GONE", "the upload was terminated or has expired; create it anew")
not_served = Refusal(404, "ERR_UPLOAD_NOT_FINISHED", "the upload is not finished; its bytes are not served")
mismatched_offset = RefusalWith[int](
    409, "ERR_MISMATCHED_OFFSET", "Upload-Offset does not match the offset of the upload", {"Upload-Offset": "{}"})
locked = Refusal(423, "ERR_UPLOAD_LOCKED", "the upload is held by another request; try again")
# A hook chose an id that is in use.
id_taken = Refusal(409, "ERR_UPLOAD_EXISTS", "an upload with this id exists already")
# A hook chose a path or a key that is in use, whose id is not.
path_taken = Refusal(409, "ERR_PATH_EXISTS", "the path that was chosen for this upload is taken")
completed = Refusal(400, "ERR_UPLOAD_COMPLETED", "the upload is complete; nothing can be appended to it")
not_renewable = Refusal(409, "ERR_UPLOAD_FINISHED", "the upload is finished; its token is not renewed")

# Sizes
max_size_exceeded = RefusalWith[int](
    413, "ERR_MAX_SIZE_EXCEEDED", "maximum size exceeded; at most {} bytes are accepted")
# Where parts are stored whose sizes were decided before the length was known.
unknown_length_exceeded = RefusalWith[int](
    413, "ERR_MAX_SIZE_EXCEEDED",
    "maximum size exceeded; at most {} bytes are accepted of an upload created without a length; create one with Upload-Length")
quota_exceeded = RefusalWith[int](
    413, "ERR_QUOTA_EXCEEDED", "the uploads of this owner would take more bytes than its quota; {} bytes are left")
upload_size_exceeded = Refusal(
    413, "ERR_UPLOAD_SIZE_EXCEEDED", "the request carries more bytes than the upload's length leaves room for")
checksum_mismatch = Refusal(
    460, "ERR_CHECKSUM_MISMATCH", "the chunk does not match its checksum and was discarded; send it again")
digest_mismatch = Refusal(
    400, "ERR_DIGEST_MISMATCH", "the upload does not match its Repr-Digest and was removed; send it again")

# Concatenation
modify_final = Refusal(403, "ERR_MODIFY_FINAL", "a final upload cannot be modified")
too_many_repeats = RefusalWith[int](
    413, "ERR_MAX_SIZE_EXCEEDED", "parts that are named more than once would add more than {} bytes to the final upload")
too_many_waiting = RefusalWith[int](
    400, "ERR_INVALID_CONCAT", "{} final uploads wait for one of the parts already; finish that part first")
too_many_joins = Refusal(
    503, "ERR_TOO_MANY_JOINS", "too many uploads are being joined; try again later", {"Retry-After": "10"})

# Requests that end early; what arrived is kept
# Clients react to 409 as intended: their offset is out of date, so they ask for it and resume.
interrupted = Refusal(
    409, "ERR_UPLOAD_INTERRUPTED", "another request has taken this upload over; what arrived here is kept")
shutting_down = Refusal(
    503, "ERR_SERVER_SHUTDOWN", "the server is shutting down; what arrived is kept, resume later", {"Retry-After": "5"})
# Not 408: the connection may be usable again, and tus-js-client aborts an upload on every 4xx but 409 and 423.
read_timeout = Refusal(503, "ERR_READ_TIMEOUT", "no data arrived in time; what arrived before is kept, resume")
# For logs and metrics: no client is left to read it.
connection_reset = Refusal(400, "ERR_CONNECTION_RESET", "the connection ended before the body did")

# Failures of the server
unavailable = Refusal(503, "ERR_UNAVAILABLE", "temporarily unavailable; retry later", {"Retry-After": "2"})
insufficient_storage = Refusal(
    507, "ERR_INSUFFICIENT_STORAGE", "there is not enough free storage; what arrived is kept, resume later",
    {"Retry-After": "60"})
bytes_lost = Refusal(
    500, "ERR_BYTES_LOST",
    "the disk could not keep all bytes of this upload; ask for the offset and send again from there")
# The upload directory is not there, which says nothing about any upload.
volume_missing = Refusal(
    503, "ERR_STORAGE_OUT_OF_REACH", "uploads cannot be reached now; try again later", {"Retry-After": "30"})
bytes_missing = Refusal(
    503, "ERR_UPLOAD_OUT_OF_REACH", "the bytes of the upload cannot be read now; try again later", {"Retry-After": "30"})
# What is stored differs from what was sent, for good; to HEAD as well.
damaged = Refusal(500, "ERR_UPLOAD_DAMAGED", "the stored upload is damaged; the operator's log has the reason")
internal = Refusal(500, "ERR_INTERNAL_SERVER_ERROR", "internal server error; the operator's log has the reason")
hook_failed = Refusal(
    500, "ERR_INTERNAL_SERVER_ERROR", "a hook of the server failed; the operator's log has the reason")

# Access (RFC 6750, section 3). The reason of an invalid token is a clause without quotes, in words of our own.
unauthenticated = Refusal(401, "ERR_UNAUTHENTICATED", "a token is needed", {"WWW-Authenticate": _BEARER})
invalid_token = RefusalWith[str](
    401, "ERR_INVALID_TOKEN", "{}", {"WWW-Authenticate": _BEARER + ', error="invalid_token", error_description="{}"'})
insufficient_scope = RefusalWith[str](
    403, "ERR_INSUFFICIENT_SCOPE", "the token does not allow this; it takes the scope {}",
    {"WWW-Authenticate": _BEARER + ', error="insufficient_scope", scope="{}"'})
revoked = Refusal(403, "ERR_UPLOAD_REVOKED", "the upload was revoked")
too_many_uploads = RefusalWith[int](
    429, "ERR_TOO_MANY_UPLOADS", "the limit of unfinished uploads ({}) is reached")
too_many_requests = RefusalWith[int](429, "ERR_TOO_MANY_REQUESTS", "too many requests", {"Retry-After": "{}"})

# Operators
foreign_host = Refusal(421, "ERR_FOREIGN_HOST", "this server is not served under that name (--admin-hosts)")
foreign_origin = Refusal(
    403, "ERR_FOREIGN_ORIGIN",
    "requests that change anything need the header field X-Tusd-Admin: 1, and none of another site's Origin")
no_operator = Refusal(
    401, "ERR_UNAUTHENTICATED", "only operators may see this; open the link that tusd-py dashboard prints, or sign in",
    {"WWW-Authenticate": _BEARER})
session_ended = Refusal(
    401, "ERR_SESSION_ENDED", "the session has ended; open a new link or sign in again", {"WWW-Authenticate": _BEARER})
bad_link = Refusal(403, "ERR_LINK_USED", "the link was used already, is too old, or is not one of this server")
not_shown = Refusal(403, "ERR_NOT_SHOWN", "operators may not see this here (--admin-show-metadata)")
not_offered = RefusalWith[str](409, "ERR_NOT_OFFERED", "{}")
index_unavailable = Refusal(
    503, "ERR_INDEX_UNAVAILABLE", "Redis is away, so nothing can be listed; an upload can be shown by its id",
    {"Retry-After": "2"})

# fmt: on


def rows() -> list[tuple[int, str]]:
    """Status and code of every refusal of this table."""
    found = (each for each in globals().values() if isinstance(each, Refusal | RefusalWith))
    return [(each.status, each.code) for each in found]


_RETRY_HEAD_SECONDS = 5


def answer_to_head(problem: ProtocolError) -> ProtocolError:
    """423 with Retry-After in place of a temporary failure (5xx, or interrupted); any other refusal unchanged.

    Clients take every other failing response to a HEAD for the end of the upload, and send the whole file again. The code
    stays, for log and metrics: the response has no body.
    """
    if problem.code == damaged.code or (problem.status < 500 and problem.code != interrupted.code):
        return problem
    names = {name.lower(): value for name, value in problem.headers.items()}
    headers = {"Retry-After": names.get("retry-after", str(_RETRY_HEAD_SECONDS))}
    if problem.status == 503:
        headers["Connection"] = "close"
    return ProtocolError(423, problem.code, problem.message, headers)
