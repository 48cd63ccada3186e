"""The requests of S3 that uploads need, and what their responses say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Protocol, Self, cast
from urllib.parse import urlencode

import aiohttp
from botocore.exceptions import BotoCoreError

from tusd_py.storage.s3.aiobotocore_store import (
    FIRST_DELAY_SECONDS,
    AiobotocoreClient,
    Attempts,
    Bucket,
    Response,
    name_in_s3,
)
from tusd_py.storage.s3.failures import meaning, without_secrets
from tusd_py.storage.s3.object_store import (
    BYTES,
    JSON,
    RECORD_LIMIT,
    ListedObject,
    NewMultipart,
    ObjectHead,
    ObjectKind,
    ObjectNotFound,
    ObjectStoreError,
    Part,
    PreconditionFailed,
    Properties,
    StoreUnavailable,
)

_MOST_MISMATCHES = 6
"""How often an object may be another one than was just seen, until its removal fails: the pauses between take some seconds."""
_NOT_SUPPORTED = "NotImplemented"
"""The code of a refusal of a header that the store does not know."""


class _Body(Protocol):
    """The body of a response, as aiobotocore hands it out."""

    async def read(self, amount: int | None = None) -> bytes: ...

    def close(self) -> None: ...


class ObjectStore(AiobotocoreClient):
    """One bucket, and objects of others on the same store, whose keys are written `s3://bucket/key`.

    Upload ids and part numbers are explicit, so that any process can go on with a multipart upload that another one began.
    Requests that failed for a passing reason are repeated. A request whose response was lost may have had its effect all the
    same: a caller that depends on whether it had looks at the store again.

    Every method raises ObjectStoreError; those for which it matters name the subclasses. A body may be a buffer of the
    caller's, which must not change until the call returns.
    """

    # Multipart uploads

    async def create_multipart(self, key: str, properties: Properties) -> NewMultipart:
        """Begin a multipart upload."""
        attempts = Attempts(self.bucket)
        response = await self._request(
            "create_multipart_upload",
            key,
            self._stored(properties, ObjectKind.DATA),
            needs="UploadId",
            attempts=attempts,
        )
        return NewMultipart(_text(response, "UploadId"), attempts.may_have_acted)

    async def upload_part(
        self, key: str, upload_id: str, number: int, body: bytes | bytearray
    ) -> Part:
        """Store a part, in place of an earlier one with this number. Raises ObjectNotFound."""
        response = await self._request(
            "upload_part",
            key,
            {"UploadId": upload_id, "PartNumber": number, "Body": body},
            needs="ETag",
        )
        return Part(number, _text(response, "ETag"), len(body))

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: ObjectHead, *, start: int, end: int
    ) -> Part:
        """Store the bytes of another object from `start` up to but without `end` as a part.

        source: the object, which must be the same one still. Raises ObjectNotFound, PreconditionFailed.
        """
        parameters = {
            "UploadId": upload_id,
            "PartNumber": number,
            "CopySource": self._target(source.key),
            "CopySourceRange": f"bytes={start}-{end - 1}",
            "CopySourceIfMatch": source.etag,
        }
        response = await self._request("upload_part_copy", key, parameters, needs="CopyPartResult")
        return Part(number, _text(_mapping(response, "CopyPartResult"), "ETag"), end - start)

    async def list_parts(self, key: str, upload_id: str) -> list[Part]:
        """Return all parts by number.

        A part that was stored again may be there with its earlier bytes too, as SeaweedFS lists both; their times, which are
        coarse, tell the newer one. Raises ObjectNotFound, which does not prove that the upload was completed.
        """
        markers = {"PartNumberMarker": "NextPartNumberMarker"}
        pages = self._pages("list_parts", key, {"UploadId": upload_id}, markers)
        return _parts([each async for page in pages for each in _mappings(page, "Parts")])

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
        listed = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
        parameters = {"UploadId": upload_id, "MultipartUpload": {"Parts": listed}}
        conditions = _conditions(if_match, if_absent)
        try:
            response = await self._complete(key, {**parameters, **conditions})
        except ObjectStoreError as problem:
            # Only a refusal that says nothing else can be one of the condition itself.
            if not conditions or type(problem) is not ObjectStoreError:
                raise
            response = await self._complete(key, parameters)
        return _text(response, "ETag")

    async def _complete(self, key: str, parameters: Mapping[str, object]) -> Response:
        return await self._request("complete_multipart_upload", key, parameters, needs="ETag")

    async def abort(self, key: str, upload_id: str) -> None:
        """Remove a multipart upload and its parts. Does nothing if there is none."""
        with suppress(ObjectNotFound):
            await self._request("abort_multipart_upload", key, {"UploadId": upload_id})

    async def pending_uploads(self, key: str) -> list[str]:
        """Return the ids of the multipart uploads for exactly this key: MinIO lists by nothing else."""
        place = self._target(key)
        prefix = {"Bucket": place["Bucket"], "Prefix": place["Key"]}
        markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        pages = self._pages("list_multipart_uploads", "", prefix, markers, about=key)
        return [
            _text(each, "UploadId")
            async for page in pages
            for each in _mappings(page, "Uploads")
            if each.get("Key") == place["Key"]
        ]

    # Objects

    async def put(
        self,
        key: str,
        body: bytes | bytearray | memoryview,
        properties: Properties = BYTES,
        *,
        kind: ObjectKind = ObjectKind.RECORD,
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
        parameters = {
            "Body": body,
            **self._stored(properties, kind),
            **_conditions(if_match, if_absent),
        }
        return _text(await self._request("put_object", key, parameters, needs="ETag"), "ETag")

    async def put_record(
        self, key: str, content: bytes, *, if_match: str = "", if_absent: bool = False
    ) -> str:
        """Store a record and return its etag, also if an attempt without a response has stored it. See `put`.

        Raises:
            PreconditionFailed: Another record is there.
            ObjectNotFound: The one to be replaced is gone.
        """
        try:
            return await self.put(key, content, JSON, if_match=if_match, if_absent=if_absent)
        except (PreconditionFailed, ObjectNotFound):
            head, stored = await self.read(key)
            if stored != content:
                raise PreconditionFailed(f"{self._name(key)} is another record") from None
            return head.etag

    async def get(
        self, key: str, *, start: int = 0, end: int | None = None, if_match: str = ""
    ) -> ObjectStream:
        """Open an object for reading, from byte `start` up to but without `end`.

        Raises ObjectNotFound, RangeNotSatisfiable, PreconditionFailed.
        """
        parameters: dict[str, object] = {}
        if start or end is not None:
            parameters["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        if if_match:
            parameters["IfMatch"] = if_match
        response = await self._request("get_object", key, parameters)
        whole = str(response.get("ContentRange", "")).rpartition("/")[2]
        size = int(whole) if whole.isdigit() else _number(response, "ContentLength")
        body = cast(_Body, response["Body"])
        return ObjectStream(_head(key, response, size), body, _number(response, "ContentLength"))

    async def read(self, key: str, *, limit: int = RECORD_LIMIT) -> tuple[ObjectHead, bytes]:
        """Return a small object whole. Raises ObjectNotFound, ObjectStoreError if it has more than `limit` bytes."""
        began = time.monotonic()
        while True:
            async with await self.get(key) as stream:
                if stream.head.size > limit:
                    raise ObjectStoreError(
                        f"{self._name(key)} has {stream.head.size} bytes, more than the {limit} that are read"
                    )
                try:
                    return stream.head, b"".join([data async for data in stream.chunks(limit)])
                except StoreUnavailable:
                    if time.monotonic() - began > self.bucket.repeat_seconds:
                        raise
            await asyncio.sleep(FIRST_DELAY_SECONDS)

    async def read_text(self, key: str) -> tuple[str, str | None]:
        """Return the etag of a small object and its text; an empty etag and None if there is none."""
        try:
            head, content = await self.read(key)
        except ObjectNotFound:
            return "", None
        return head.etag, content.decode()

    async def head(self, key: str) -> ObjectHead:
        """Return an object without its bytes. Raises ObjectNotFound."""
        response = await self._request("head_object", key, {})
        return _head(key, response, _number(response, "ContentLength"))

    async def head_or_none(self, key: str) -> ObjectHead | None:
        """Return an object without its bytes; None if there is none."""
        try:
            return await self.head(key)
        except ObjectNotFound:
            return None

    async def delete(self, key: str) -> None:
        """Remove an object, whichever it is. Does nothing if there is none.

        Only for keys that get no other object: a request that is repeated or late would remove that.
        """
        with suppress(ObjectNotFound):
            await self._request("delete_object", key, {})

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
        removal = _Removal(self.bucket, takes_conditions=self._takes_conditional_deletes)
        while etag := await look():
            if removal.attempts.failed and self.observer is not None:
                self.observer.repeated(name_in_s3("delete_object"))
            conditions = _conditions(etag, if_absent=False) if removal.takes_conditions else {}
            removal.is_found = True
            try:
                client = await self._open()
                request = self._prepare(client, "delete_object", key, conditions)
                await self._attempt(request, removal.attempts)
            except ObjectNotFound:
                break
            except ObjectStoreError as problem:
                delay = removal.delay_after(problem, is_conditional=bool(conditions))
                if delay is None:
                    raise
                failed = removal.attempts.failed
                self._log_repeat("delete_object", key, problem, failed, delay)
            else:
                if removal.lacks_support:
                    self._takes_conditional_deletes = False
                break
            await asyncio.sleep(delay)
        return removal.is_found

    async def delete_seen(self, key: str, etag: str) -> bool:
        """Remove an object unless it is another one than that with this etag; return whether it was there. See `delete_if`."""

        async def look() -> str:
            head = await self.head_or_none(key)
            return etag if head is not None and head.etag == etag else ""

        return await self.delete_if(key, look)

    async def list(self, prefix: str) -> AsyncIterator[Sequence[ListedObject]]:
        """Yield the objects whose keys begin with `prefix` in the order of their keys, a page at a time."""
        markers = {"ContinuationToken": "NextContinuationToken"}
        pages = self._pages("list_objects_v2", "", {"Prefix": prefix}, markers, about=prefix)
        async for page in pages:
            yield [
                ListedObject(
                    _text(each, "Key"),
                    _number(each, "Size"),
                    str(each.get("ETag", "")),
                    _time(each, "LastModified"),
                )
                for each in _mappings(page, "Contents")
            ]

    async def each(
        self, prefix: str, *, before: float = float("inf")
    ) -> AsyncIterator[ListedObject]:
        """Yield the objects whose keys begin with `prefix`. before: only older ones, in seconds since the epoch."""
        async for page in self.list(prefix):
            for listed in page:
                if listed.modified_at < before:
                    yield listed

    async def presigned_get(
        self, key: str, *, seconds: int, content_type: str = "", disposition: str = ""
    ) -> str:
        """Return a URL by which anybody can download the object for some seconds. It is a secret: never log it.

        content_type, disposition: of the response, in place of what is stored with the object.
        """
        parameters = self._target(key)
        if content_type:
            parameters["ResponseContentType"] = content_type
        if disposition:
            parameters["ResponseContentDisposition"] = disposition
        client = await self._open_signer()
        sign = cast("Callable[..., Awaitable[str]]", getattr(client, "generate_presigned_url"))  # noqa: B009 - untyped
        try:
            return await sign("get_object", Params=parameters, ExpiresIn=seconds)
        except BotoCoreError as problem:
            raise meaning(problem, f"signing a URL of {self._name(key)}") from None

    # Parameters and pages

    def _stored(self, properties: Properties, kind: ObjectKind) -> dict[str, object]:
        """The parameters of a request that creates an object."""
        bucket = self.bucket
        given: dict[str, object] = {
            "ContentType": properties.content_type,
            "ContentDisposition": properties.content_disposition,
            "Metadata": dict(properties.metadata),
        }
        if bucket.encryption is not None:
            given["ServerSideEncryption"] = bucket.encryption.algorithm
            given["SSEKMSKeyId"] = bucket.encryption.kms_key
            given["BucketKeyEnabled"] = bucket.encryption.bucket_key
        if kind is ObjectKind.DATA:
            given["ACL"] = bucket.acl
            given["StorageClass"] = bucket.storage_class
            given["CacheControl"] = bucket.cache_control
            given["Tagging"] = urlencode(bucket.tags)
        return {name: value for name, value in given.items() if value}

    async def _pages(
        self,
        operation: str,
        key: str,
        parameters: Mapping[str, object],
        markers: Mapping[str, str],
        *,
        about: str = "",
    ) -> AsyncIterator[Response]:
        """Yield the pages of a list. markers: parameters of the next page, with the fields of this one that have them."""
        more: dict[str, object] = {}
        while True:
            page = await self._request(operation, key, {**parameters, **more}, about=about)
            yield page
            following = {name: page.get(field) for name, field in markers.items()}
            if not page.get("IsTruncated") or not all(following.values()):
                return
            if following == more:
                # Some stores repeat their last page for ever. A list of objects that ends early would hide uploads.
                if operation == "list_objects_v2":
                    raise StoreUnavailable(
                        "a list of objects that repeats a page", code="Malformed"
                    )
                return
            more = following


class _Removal:
    """The attempts of one conditional removal.

    Attributes:
        takes_conditions: Whether the store is asked with a condition.
        is_found: An object was seen that may go.
        lacks_support: The store has said that it knows no such condition.
    """

    def __init__(self, bucket: Bucket, *, takes_conditions: bool) -> None:
        self.attempts = Attempts(bucket)
        self.takes_conditions = takes_conditions
        self.is_found = False
        self.lacks_support = False
        self._mismatches = 0

    def delay_after(self, failure: ObjectStoreError, *, is_conditional: bool) -> float | None:
        """Return the seconds to wait before another look; None if there is to be none."""
        if isinstance(failure, PreconditionFailed):
            # Another one since the look, or none: several stores say so of both, and show for a while what is gone.
            self._mismatches += 1
            return self.attempts.next_delay() if self._mismatches < _MOST_MISMATCHES else None
        if is_conditional and type(failure) is ObjectStoreError:
            # Only a refusal that says nothing else can be one of the condition itself, which need not last.
            self.takes_conditions = False
            self.lacks_support = failure.status == 501 or failure.code == _NOT_SUPPORTED
            return 0.0
        return self.attempts.delay_after(failure)


class ObjectStream:
    """The bytes of an object, or of a range of it. `async with` releases the connection.

    head: the whole object; its size is not that of the range. length: bytes of the response.
    """

    def __init__(self, head: ObjectHead, body: _Body, length: int) -> None:
        self.head = head
        self._body = body
        self._length = length

    async def chunks(self, size: int) -> AsyncIterator[bytes]:
        """Yield the bytes, at most `size` at a time. Raises StoreUnavailable where the connection ends early."""
        received = 0
        try:
            while received < self._length:
                data = await self._body.read(size)
                if not data:
                    break
                received += len(data)
                yield data
        except (BotoCoreError, aiohttp.ClientError, OSError) as problem:
            raise StoreUnavailable(
                f"reading {self.head.key}: {without_secrets(repr(problem))}",
                code=type(problem).__name__,
            ) from None
        if received != self._length:
            raise StoreUnavailable(
                f"reading {self.head.key}: {received} of {self._length} bytes", code="Incomplete"
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._body.close()


def _conditions(if_match: str, if_absent: bool) -> dict[str, object]:
    """The parameters of a request that replaces only one object, or none."""
    conditions: dict[str, object] = {"IfMatch": if_match} if if_match else {}
    if if_absent:
        conditions["IfNoneMatch"] = "*"
    return conditions


# Responses, whose shapes are checked here


def _parts(listed: Sequence[Response]) -> list[Part]:
    found = [
        Part(
            _number(each, "PartNumber"),
            _text(each, "ETag"),
            _number(each, "Size"),
            _time(each, "LastModified"),
        )
        for each in listed
    ]
    return sorted(found, key=lambda part: (part.number, part.stored_at))


def _head(key: str, response: Response, size: int) -> ObjectHead:
    metadata = cast("Mapping[str, str]", response.get("Metadata") or {})
    return ObjectHead(
        key,
        size,
        _text(response, "ETag"),
        _time(response, "LastModified"),
        Properties(
            content_type=str(response.get("ContentType", "")),
            content_disposition=str(response.get("ContentDisposition", "")),
            # Some stores answer in capitals.
            metadata={name.lower(): value for name, value in metadata.items()},
        ),
    )


def _text(response: Response, name: str) -> str:
    value = response.get(name)
    if not isinstance(value, str) or not value:
        raise StoreUnavailable(f"a response without {name}", code="Malformed")
    return value


def _number(response: Response, name: str) -> int:
    value = response.get(name)
    if not isinstance(value, int):
        raise StoreUnavailable(f"a response without {name}", code="Malformed")
    return value


def _time(response: Response, name: str) -> float:
    value = response.get(name)
    return value.timestamp() if isinstance(value, datetime) else 0.0


def _mapping(response: Response, name: str) -> Response:
    value = response.get(name)
    return value if isinstance(value, Mapping) else {}


def _mappings(response: Response, name: str) -> list[Response]:
    value = response.get(name)
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
