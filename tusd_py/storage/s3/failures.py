"""The meaning of the errors of botocore: which of our own errors each of them is."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import cast

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError

from tusd_py.storage.s3.object_store import (
    AccessDenied,
    ObjectNotFound,
    ObjectStoreError,
    PreconditionFailed,
    RangeNotSatisfiable,
    StoreMisconfigured,
    StoreUnavailable,
)

_SKEWED = "RequestTimeTooSkewed"
_NOT_FOUND = {"NoSuchKey", "NoSuchUpload", "NotFound", "404"}
_MISCONFIGURED = {
    "NoSuchBucket": "there is no such bucket",
    "InvalidBucketName": "the bucket's name is not valid",
    "InvalidAccessKeyId": "the access key is not known there",
    "XAdminUserNotFound": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "the session token is not valid",
    "InvalidClientTokenId": "the access key is not known there",
    _SKEWED: "this machine's clock differs too much from the store's",
    "AuthorizationHeaderMalformed": "the region is wrong",
    "PermanentRedirect": "the bucket is in another region or at another endpoint",
    "TemporaryRedirect": "the bucket is in another region or at another endpoint",
    "IllegalLocationConstraintException": "the region is wrong",
}
_TRANSIENT = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "RequestTimeout",
    "RequestTimeoutException",
    "OperationAborted",
    # Another request for the same object was under way: a repeat tells which of them counts.
    "ConditionalRequestConflict",
    "InternalError",
    "ServiceUnavailable",
    # The bytes were damaged or cut on their way.
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "IncompleteBody",
}
"""Codes of refusals that do not last, whatever the status is."""
_UNREACHABLE = (
    exceptions.HTTPClientError,
    exceptions.ConnectionError,
    exceptions.IncompleteReadError,
    exceptions.CredentialRetrievalError,
    exceptions.MetadataRetrievalError,
)


_SECRETS = (
    # Of a presigned URL, and the name and password of an endpoint.
    (re.compile(r"(https?://[^\s\"'<>?]*)\?[^\s\"'<>]*"), r"\1?..."),
    (re.compile(r"(https?://)[^\s\"'<>/?#]*@"), r"\1...@"),
    (
        re.compile(r"(?i)\b((?:x-amz-)?(?:signature|credential|security-token))=[^\s&,\"'<>]*"),
        r"\1=...",
    ),
)


def without_secrets(text: str) -> str:
    """Return a text of the SDK or of a store without what would let its reader in: signatures, queries of URLs, passwords."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def meaning(problem: ClientError | BotoCoreError, request: str) -> ObjectStoreError:
    """Return an error of botocore as the one of ours that it is. request: what was asked for, for the text."""
    if isinstance(problem, ClientError):
        return _of_response(problem, request)
    code = type(problem).__name__
    kind = StoreUnavailable if isinstance(problem, _UNREACHABLE) else StoreMisconfigured
    if isinstance(problem, exceptions.SSLError):
        kind = StoreMisconfigured
    return kind(f"{request}: {without_secrets(str(problem))}", code=code)


def _of_response(problem: ClientError, request: str) -> ObjectStoreError:
    response = cast("dict[str, dict[str, object]]", problem.response)
    error, about = response.get("Error", {}), response.get("ResponseMetadata", {})
    code = str(error.get("Code", ""))
    status = int(str(about.get("HTTPStatusCode", 0)))
    request_id = str(about.get("RequestId", ""))
    reason = _MISCONFIGURED.get(code) or without_secrets(str(error.get("Message", "")))
    if code == _SKEWED:
        reason = _skew(about.get("HTTPHeaders")) or reason
    named = f", request id {request_id}" if request_id else ""
    return _kind(code, status)(
        f"{request}: {reason} ({code}, status {status}{named})",
        code=code,
        status=status,
        request_id=request_id,
    )


def _skew(headers: object) -> str:
    """The difference of the clocks by the response's Date, and what to do; empty if that tells nothing."""
    date = headers.get("date") if isinstance(headers, Mapping) else None
    try:
        skew = parsedate_to_datetime(str(date)).timestamp() - time.time()
    except ValueError:
        return ""
    side = "behind" if skew > 0 else "ahead of"
    return f"this machine's clock is {abs(skew):.0f} seconds {side} the store's, which refuses requests: set it, best by NTP"


def _kind(code: str, status: int) -> type[ObjectStoreError]:
    if code in _MISCONFIGURED or status in {301, 307}:
        return StoreMisconfigured
    if code in _TRANSIENT or status in {408, 429} or (status >= 500 and status != 501):
        return StoreUnavailable
    if code in _NOT_FOUND:
        return ObjectNotFound
    if status == 412:
        return PreconditionFailed
    if status == 416:
        return RangeNotSatisfiable
    if status == 403:
        return AccessDenied
    return ObjectStoreError
