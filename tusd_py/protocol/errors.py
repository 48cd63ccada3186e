"""Refusals: each one knows the response that it means.

Whatever a client can do wrong, or the server has to decline, is one `ProtocolError` made by a function of this module; the
edge turns it into a response without looking further. Codes are those that users of tusd match on (`ERR_…`); messages never
carry an error text of the operating system.
"""

from __future__ import annotations

from collections.abc import Mapping


class ProtocolError(Exception):
    """A request that is refused or could not be carried to its end.

    status: HTTP status code. code: stable name for programs, `ERR_…`. message: one sentence for people.
    headers: header fields that the response carries besides the usual ones.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.headers: dict[str, str] = dict(headers or {})


def unsupported_version(supported: str) -> ProtocolError:
    """412: `Tus-Resumable` is missing or names a version that is not spoken here (tus 1.0.0, "Tus-Resumable")."""
    return ProtocolError(
        412,
        "ERR_UNSUPPORTED_VERSION",
        f"missing, invalid or unsupported Tus-Resumable header; this server speaks {supported}",
        {"Tus-Version": supported},
    )


def invalid_offset() -> ProtocolError:
    """400: `Upload-Offset` is missing or not a non-negative integer."""
    return ProtocolError(
        400,
        "ERR_INVALID_OFFSET",
        "missing or invalid Upload-Offset header; it must be a non-negative integer",
    )


def invalid_length(reason: str = "missing or invalid Upload-Length header") -> ProtocolError:
    """400: `Upload-Length` is missing, malformed, or contradicts what is known."""
    return ProtocolError(400, "ERR_INVALID_UPLOAD_LENGTH", reason)


def invalid_defer_length() -> ProtocolError:
    """400: `Upload-Defer-Length` has a value other than 1, or stands beside `Upload-Length`."""
    return ProtocolError(
        400,
        "ERR_INVALID_UPLOAD_LENGTH_DEFER",
        "invalid Upload-Defer-Length header; it must be 1 and excludes Upload-Length",
    )


def invalid_metadata(reason: str) -> ProtocolError:
    """400: `Upload-Metadata` does not parse."""
    return ProtocolError(400, "ERR_INVALID_METADATA", f"invalid Upload-Metadata header: {reason}")


def invalid_concat(reason: str) -> ProtocolError:
    """400: `Upload-Concat` does not parse, or names something that cannot be joined."""
    return ProtocolError(400, "ERR_INVALID_CONCAT", f"invalid Upload-Concat header: {reason}")


def invalid_content_type() -> ProtocolError:
    """415: PATCH (or a POST with content) of another media type."""
    return ProtocolError(
        415, "ERR_INVALID_CONTENT_TYPE", "Content-Type must be application/offset+octet-stream"
    )


def invalid_checksum(reason: str) -> ProtocolError:
    """400: `Upload-Checksum` does not parse."""
    return ProtocolError(400, "ERR_INVALID_CHECKSUM", f"invalid Upload-Checksum header: {reason}")


def unsupported_checksum(supported: str) -> ProtocolError:
    """400: `Upload-Checksum` names an algorithm that is not offered."""
    return ProtocolError(
        400,
        "ERR_UNSUPPORTED_CHECKSUM_ALGORITHM",
        f"unsupported checksum algorithm; this server knows {supported}",
        {"Tus-Checksum-Algorithm": supported},
    )


def checksum_mismatch() -> ProtocolError:
    """460: the bytes of the request do not have the checksum that was announced; they were discarded."""
    return ProtocolError(
        460,
        "ERR_CHECKSUM_MISMATCH",
        "the chunk does not match its checksum and was discarded; send it again",
    )


def not_found() -> ProtocolError:
    """404: no such upload, or none that this client may know of."""
    return ProtocolError(404, "ERR_UPLOAD_NOT_FOUND", "upload not found")


def gone() -> ProtocolError:
    """410: the upload existed and was terminated, or it expired."""
    return ProtocolError(
        410, "ERR_UPLOAD_GONE", "the upload was terminated or has expired; create it anew"
    )


def not_served() -> ProtocolError:
    """404: the upload cannot be downloaded because it is not finished."""
    return ProtocolError(
        404, "ERR_UPLOAD_NOT_FINISHED", "the upload is not finished; its bytes are not served"
    )


def mismatched_offset(actual: int) -> ProtocolError:
    """409: PATCH at another offset than the upload's; the response tells the true one."""
    return ProtocolError(
        409,
        "ERR_MISMATCHED_OFFSET",
        "Upload-Offset does not match the offset of the upload",
        {"Upload-Offset": str(actual)},
    )


DUPLICATE_UPLOAD = "ERR_DUPLICATE_UPLOAD"
"""The code of a refusal because the upload is there already."""


def max_size_exceeded() -> ProtocolError:
    """413: the upload is, or would become, larger than the server's maximum."""
    return ProtocolError(413, "ERR_MAX_SIZE_EXCEEDED", "maximum size exceeded")


def too_many_repeats(most: int) -> ProtocolError:
    """413: a final names parts more than once, which together are larger than the server copies again."""
    return ProtocolError(
        413,
        "ERR_MAX_SIZE_EXCEEDED",
        f"parts that are named more than once would add more than {most} bytes to the final upload",
    )


def too_many_joins() -> ProtocolError:
    """503: as many finals are being joined as the server takes at a time."""
    return ProtocolError(
        503,
        "ERR_TOO_MANY_JOINS",
        "too many uploads are being joined; try again later",
        {"Retry-After": "10"},
    )


def upload_size_exceeded() -> ProtocolError:
    """413: more bytes than the upload's declared length."""
    return ProtocolError(
        413,
        "ERR_UPLOAD_SIZE_EXCEEDED",
        "the request carries more bytes than the upload's length leaves room for",
    )


def modify_final() -> ProtocolError:
    """403: PATCH on a final upload."""
    return ProtocolError(403, "ERR_MODIFY_FINAL", "a final upload cannot be modified")


def parts_unfinished() -> ProtocolError:
    """400: a final was asked for while one of its parts is unfinished, and the store cannot wait for it."""
    return ProtocolError(
        400, "ERR_UPLOAD_NOT_FINISHED", "one of the partial uploads is not finished"
    )


def locked() -> ProtocolError:
    """423: another request holds the upload and did not let go in time."""
    return ProtocolError(
        423, "ERR_UPLOAD_LOCKED", "the upload is held by another request; try again"
    )


_RETRY_HEAD_SECONDS = 5
_INTERRUPTED = "ERR_UPLOAD_INTERRUPTED"
_DAMAGED = "ERR_UPLOAD_DAMAGED"


def answer_to_head(problem: ProtocolError) -> ProtocolError:
    """423 with Retry-After in place of a failure that may pass, 5xx or interrupted; any other refusal unchanged.

    Clients take every other failing response to a HEAD for the end of the upload, and send the whole file again. The code
    stays, for log and metrics: the response has no body.
    """
    if problem.code == _DAMAGED or (problem.status < 500 and problem.code != _INTERRUPTED):
        return problem
    names = {name.lower(): value for name, value in problem.headers.items()}
    headers = {"Retry-After": names.get("retry-after", str(_RETRY_HEAD_SECONDS))}
    if problem.status == 503:
        headers["Connection"] = "close"
    return ProtocolError(423, problem.code, problem.message, headers)


def interrupted() -> ProtocolError:
    """409: another request asked for this upload; what had arrived is kept.

    Clients take a 409 for what it is here: their idea of the offset is out of date, they ask for it and go on.
    """
    return ProtocolError(
        409,
        _INTERRUPTED,
        "another request has taken this upload over; what arrived here is kept",
    )


def shutting_down() -> ProtocolError:
    """503: the server is being stopped; what had arrived is kept."""
    return ProtocolError(
        503,
        "ERR_SERVER_SHUTDOWN",
        "the server is shutting down; what arrived is kept, resume later",
        {"Retry-After": "5"},
    )


def unavailable() -> ProtocolError:
    """503: something that the server needs does not answer now."""
    return ProtocolError(
        503,
        "ERR_UNAVAILABLE",
        "the server cannot take this now; nothing is lost, try again",
        {"Retry-After": "2"},
    )


def read_timeout() -> ProtocolError:
    """503: no byte of the body came in for the network time-out; what had arrived is kept.

    Not 408: the line may well be back by now, and tus-js-client gives an upload up on every 4xx but 409 and 423.
    """
    return ProtocolError(
        503, "ERR_READ_TIMEOUT", "no data arrived in time; what arrived before is kept, resume"
    )


def connection_reset() -> ProtocolError:
    """400: the connection ended in the middle of the body. Nobody is left to read it: it is for logs and metrics."""
    return ProtocolError(400, "ERR_CONNECTION_RESET", "the connection ended before the body did")


def insufficient_storage() -> ProtocolError:
    """507: the disk is full, or has less free than the operator's reserve; what was stored is kept."""
    return ProtocolError(
        507,
        "ERR_INSUFFICIENT_STORAGE",
        "there is not enough free storage; what arrived is kept, resume later",
        {"Retry-After": "60"},
    )


def bytes_lost() -> ProtocolError:
    """500: the disk could not keep bytes that it had taken; the offset tells what is left of them."""
    return ProtocolError(
        500,
        "ERR_BYTES_LOST",
        "the disk could not keep all bytes of this upload; ask for the offset and send again from there",
    )


def internal() -> ProtocolError:
    """500: something failed that is not the client's doing; the log has the reason."""
    return ProtocolError(
        500, "ERR_INTERNAL_SERVER_ERROR", "internal server error; the operator's log has the reason"
    )


def damaged() -> ProtocolError:
    """500: what is stored of the upload is not what was sent, and will not be by itself; to a HEAD as well."""
    return ProtocolError(
        500, _DAMAGED, "the stored upload is damaged; the operator's log has the reason"
    )


def bytes_missing() -> ProtocolError:
    """503: the upload is known, but its bytes cannot be reached now."""
    return ProtocolError(
        503,
        "ERR_UPLOAD_OUT_OF_REACH",
        "the upload cannot be reached now; nothing is given up, try again later",
        {"Retry-After": "30"},
    )


def method_not_allowed(allowed: str) -> ProtocolError:
    """405: the resource does not know the method."""
    return ProtocolError(
        405,
        "ERR_METHOD_NOT_ALLOWED",
        f"method not allowed; this resource knows {allowed}",
        {"Allow": allowed},
    )


def bad_request(message: str) -> ProtocolError:
    """400: the request is malformed in another way."""
    return ProtocolError(400, "ERR_BAD_REQUEST", message)


def id_taken() -> ProtocolError:
    """409: a hook chose an id that is in use."""
    return ProtocolError(409, "ERR_UPLOAD_EXISTS", "an upload with this id exists already")


_CHALLENGE = 'Bearer realm="uploads"'


def unauthenticated() -> ProtocolError:
    """401: nobody said who they are (RFC 6750, section 3)."""
    return ProtocolError(
        401, "ERR_UNAUTHENTICATED", "a token is needed", {"WWW-Authenticate": _CHALLENGE}
    )


def invalid_token(reason: str) -> ProtocolError:
    """401: a token that does not count. reason: a clause without quotes, in words of our own (RFC 6750, section 3.1)."""
    challenge = f'{_CHALLENGE}, error="invalid_token", error_description="{reason}"'
    return ProtocolError(401, "ERR_INVALID_TOKEN", reason, {"WWW-Authenticate": challenge})


def insufficient_scope(scope: str) -> ProtocolError:
    """403: a right token that does not allow this (RFC 6750, section 3.1)."""
    challenge = f'{_CHALLENGE}, error="insufficient_scope", scope="{scope}"'
    return ProtocolError(
        403,
        "ERR_INSUFFICIENT_SCOPE",
        f"the token does not allow this; it takes the scope {scope}",
        {"WWW-Authenticate": challenge},
    )


def revoked() -> ProtocolError:
    """403: the upload was revoked; nobody but an administrator goes on with it."""
    return ProtocolError(403, "ERR_UPLOAD_REVOKED", "the upload was revoked")


def too_many_uploads(limit: int) -> ProtocolError:
    """429: whoever asks has as many unfinished uploads as their token allows."""
    return ProtocolError(
        429,
        "ERR_TOO_MANY_UPLOADS",
        f"there are {limit} unfinished uploads, which is all that the token allows",
    )


def too_many_requests(seconds: int) -> ProtocolError:
    """429: this was asked for too often; `seconds` later it may be asked for again."""
    return ProtocolError(
        429, "ERR_TOO_MANY_REQUESTS", "too many requests", {"Retry-After": str(seconds)}
    )


def not_renewable() -> ProtocolError:
    """409: the upload is finished, and needs no token any more."""
    return ProtocolError(
        409, "ERR_UPLOAD_FINISHED", "the upload is finished; its token is not renewed"
    )
