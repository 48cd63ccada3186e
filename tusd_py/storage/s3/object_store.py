"""The port to an object store: the requests of S3 that uploads need, and what can go wrong with them.

Upload ids and part numbers are explicit, so that any process can go on with a multipart upload that another one began. An
adapter repeats requests that failed for a passing reason. A request whose response was lost may have had its effect all the
same: a caller that depends on whether it had looks at the store again. Not for: what the objects mean.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import ClassVar, Protocol, Self

MIN_PART_BYTES = 5 * 1024 * 1024
"""Smallest part of a multipart upload, but for its last."""
MAX_PART_BYTES = 5 * 1024 * 1024 * 1024
"""Largest part, also of one that is copied, and largest object of a single request."""
MAX_PARTS = 10_000
"""Most parts of one multipart upload."""


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
        self,
        message: str,
        *,
        code: str = "",
        status: int = 0,
        request_id: str = "",
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


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """An object without its bytes.

    Attributes:
        key: Its key.
        size: Bytes.
        etag: Names this version of it; as the store writes it.
        modified_at: When it was written, by the store's clock, in seconds since the epoch.
        properties: What is stored with it.
    """

    key: str
    size: int
    etag: str
    modified_at: float
    properties: Properties


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object in a list; the fields are those of `ObjectHead`."""

    key: str
    size: int
    etag: str
    modified_at: float


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


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """A multipart upload that is neither complete nor aborted. initiated_at: in seconds since the epoch."""

    key: str
    upload_id: str
    initiated_at: float


class RequestObserver(Protocol):
    """Told of each attempt of a request, for metrics. operation: the name that S3 gives it. Called in the event loop."""

    def began(self, operation: str) -> None:
        """An attempt is being made."""

    def ended(self, operation: str, outcome: str, seconds: float) -> None:
        """It ended. outcome: "ok", or that of the error. seconds: up to the head of the response."""

    def repeated(self, operation: str) -> None:
        """The last attempt failed, and another one follows."""


class ObjectStream(Protocol):
    """The bytes of an object, or of a range of it. `async with` releases the connection."""

    head: ObjectHead
    """The whole object; `size` is that of the object, not of the range."""

    def chunks(self, size: int) -> AsyncIterator[bytes]:
        """Yield the bytes, at most `size` at a time. Raises StoreUnavailable where the connection ends early."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _problem: BaseException | None,
        _trace: TracebackType | None,
    ) -> None: ...


class ObjectStore(Protocol):
    """One bucket, and objects of others on the same store, whose keys are written `s3://bucket/key`.

    Every method raises ObjectStoreError; those for which it matters name the subclasses.

    A body may be a buffer of the caller's, which must not change until the call returns.
    """

    async def close(self) -> None:
        """Close all connections; the next request opens new ones."""

    async def create_multipart(self, key: str, properties: Properties) -> NewMultipart:
        """Begin a multipart upload."""

    async def upload_part(
        self, key: str, upload_id: str, number: int, body: bytes | bytearray
    ) -> Part:
        """Store a part, in place of an earlier one with this number. Raises ObjectNotFound."""

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: ObjectHead, *, start: int, end: int
    ) -> Part:
        """Store the bytes of another object from `start` up to but without `end` as a part.

        source: the object, which must be the same one still. Raises ObjectNotFound, PreconditionFailed.
        """

    async def list_parts(self, key: str, upload_id: str) -> list[Part]:
        """Return all parts by number.

        A part that was stored again may be there with its earlier bytes too, as SeaweedFS lists both; their times, which are
        coarse, tell the newer one. Raises ObjectNotFound, which does not prove that the upload was completed.
        """

    async def complete(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[Part],
        *,
        if_match: str = "",
        if_absent: bool = False,
    ) -> str:
        """Make one object of the parts and return its etag.

        Not every store knows a condition here: one that refuses the request because of it is asked again without.

        Args:
            key: The key.
            upload_id: The multipart upload.
            parts: Its parts, by number.
            if_match: Replace only the object with this etag.
            if_absent: Replace none.

        Raises:
            ObjectNotFound: There is no such multipart upload, perhaps as an attempt whose response was lost completed it.
            PreconditionFailed: The object is another one, perhaps that of such an attempt. The parts stay.
        """

    async def abort(self, key: str, upload_id: str) -> None:
        """Remove a multipart upload and its parts. Does nothing if there is none."""

    async def pending_uploads(self, key: str) -> list[PendingUpload]:
        """Return the multipart uploads for exactly this key."""

    async def put(
        self,
        key: str,
        body: bytes | bytearray | memoryview,
        properties: Properties,
        *,
        kind: ObjectKind,
        if_match: str = "",
        if_absent: bool = False,
    ) -> str:
        """Store an object in one request and return its etag.

        Args:
            key: The key.
            body: The bytes, which do not change until this returns.
            properties: What is stored with it.
            kind: What it is for.
            if_match: Replace only the object with this etag.
            if_absent: Replace none.

        Raises:
            PreconditionFailed: The object is another one. It may be the one of this very request, as HTTP clients and proxies
                repeat some without telling: a caller compares.
        """

    async def get(
        self, key: str, *, start: int = 0, end: int | None = None, if_match: str = ""
    ) -> ObjectStream:
        """Open an object for reading, from byte `start` up to but without `end`.

        Raises ObjectNotFound, RangeNotSatisfiable, PreconditionFailed.
        """

    async def read(self, key: str, *, limit: int) -> tuple[ObjectHead, bytes]:
        """Return a small object whole. Raises ObjectNotFound, ObjectStoreError if it has more than `limit` bytes."""

    async def head(self, key: str) -> ObjectHead:
        """Return an object without its bytes. Raises ObjectNotFound."""

    async def delete(self, key: str) -> None:
        """Remove an object, whichever it is. Does nothing if there is none.

        Only for keys that get no other object: a request that is repeated or late would remove that.
        """

    async def delete_if(self, key: str, look: Callable[[], Awaitable[str]]) -> bool:
        """Remove the object that `look` finds at a key, and no other one that is stored there since.

        Not every store knows a condition here. Then what is stored between the look and the removal goes as well, so a failed
        attempt is not repeated before another look.

        Args:
            key: The key.
            look: Called right before each attempt; returns the etag of the object that may go, or an empty text for none.

        Returns:
            Whether an object was found that may go, which it then has.

        Raises:
            PreconditionFailed: The store says again and again that the object is another one than `look` finds.
            ObjectStoreError: Also what `look` raises.
        """

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[Sequence[ListedObject]]:
        """Yield the objects whose keys begin with `prefix` in the order of their keys, a page at a time.

        after: only keys behind this one.
        """

    async def presigned_get(
        self, key: str, *, seconds: int, content_type: str = "", disposition: str = ""
    ) -> str:
        """Return a URL by which anybody can download the object for some seconds. It is a secret: never log it.

        content_type, disposition: of the response, in place of what is stored with the object.
        """
