"""What requests to an object store take, return and raise. Not for: what the objects mean."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Protocol, TypeVar

MIN_PART_BYTES = 5 * 1024 * 1024
"""Smallest part of a multipart upload, but for its last."""
MAX_PART_BYTES = 5 * 1024 * 1024 * 1024
"""Largest part, also of one that is copied, and largest object of a single request."""
MAX_PARTS = 10_000
"""Most parts of one multipart upload."""
RECORD_LIMIT = 8 * 1024 * 1024
"""Bytes of the longest record that is read: finals can list many parts."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_OTHER_BUCKET = re.compile(r"s3://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])/(.+)", re.DOTALL)


def other_bucket(key: str) -> tuple[str, str] | None:
    """Return the bucket and the key in it of a key that names an object of another bucket (`s3://bucket/key`), else None."""
    found = _OTHER_BUCKET.fullmatch(key)
    return None if found is None else (found[1], found[2])


class ObjectStoreError(Exception):
    """The object store refused a request for good, or did not do it. The text is for the log, never for a client.

    Attributes:
        code: The store's own code (`NoSuchKey`), or a name for what happened to the connection.
        status: The status of the response; 0 if there was none.
        request_id: The store's id of the request, which its operator can look up; empty if it told none.
        outcome: The kind of error in one word, for metrics.
    """

    outcome: ClassVar[str] = "failed"

    def __init__(
        self, message: str, *, code: str = "", status: int = 0, request_id: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.request_id = request_id


class ObjectNotFound(ObjectStoreError):
    """There is no such object or multipart upload: several stores say the same of both."""

    outcome = "not_found"


class PreconditionFailed(ObjectStoreError):
    """The object is not the one that the request was conditional on, or another request is changing it."""

    outcome = "precondition_failed"


class RangeNotSatisfiable(ObjectStoreError):
    """The object has no byte of the range."""

    outcome = "range_not_satisfiable"


class AccessDenied(ObjectStoreError):
    """The credentials are right and do not permit this."""

    outcome = "denied"


class StoreMisconfigured(ObjectStoreError):
    """No request can work: wrong bucket, region, endpoint or credentials, or a clock that is wrong. The text says which."""

    outcome = "misconfigured"


class StoreUnavailable(ObjectStoreError):
    """The store did not do it now, or its response did not arrive; the request may have had its effect."""

    outcome = "unavailable"


class ObjectKind(Enum):
    """What an object is for, which decides its storage class, access control and tags."""

    DATA = "data"
    """The bytes of an upload, or a part of them that stays."""
    RECORD = "record"
    """A small object of ours that is replaced and removed often."""


@dataclass(frozen=True, slots=True)
class Properties:
    """What is stored with an object. Values of `metadata` are ASCII; both together are limited to 2 KiB by most stores."""

    content_type: str = "application/octet-stream"
    content_disposition: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


BYTES = Properties()
JSON = Properties("application/json")
TEXT = Properties("text/plain")


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object in a list.

    Attributes:
        key: Its key.
        size: Bytes.
        etag: Names this version of it; as the store writes it.
        modified_at: When it was written, by the store's clock, in seconds since the epoch.
    """

    key: str
    size: int
    etag: str
    modified_at: float


@dataclass(frozen=True, slots=True)
class ObjectHead(ListedObject):
    """An object without its bytes. properties: what is stored with it."""

    properties: Properties


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a multipart upload.

    number: from 1. size: bytes. stored_at: seconds since the epoch by the store's clock; 0 if it did not come from a list.
    """

    number: int
    etag: str
    size: int
    stored_at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class NewMultipart:
    """A multipart upload that was just begun. may_have_twin: an attempt without a response may have begun another one."""

    upload_id: str
    may_have_twin: bool


class RequestObserver(Protocol):
    """Told of each attempt of a request, for metrics. operation: the name that S3 gives it. Called in the event loop."""

    def began(self, operation: str) -> None:
        """An attempt is being made."""

    def ended(self, operation: str, outcome: str, seconds: float) -> None:
        """It ended. outcome: "ok", or that of the error. seconds: up to the head of the response."""

    def repeated(self, operation: str) -> None:
        """The last attempt failed, and another one follows."""


async def for_each(
    items: Sequence[_Item], do: Callable[[_Item], Awaitable[_Result]], *, at_once: int
) -> list[_Result]:
    """Return what `do` returns for each item, in order. at_once: calls that are under way at a time."""
    results: list[_Result] = []
    for at in range(0, len(items), at_once):
        results += await asyncio.gather(*map(do, items[at : at + at_once]))
    return results
