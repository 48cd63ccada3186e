"""The object store by aiobotocore: the whole chain of credentials, regions and endpoints that its SDK knows.

The SDK makes each attempt once, and the repeats are ours: they are logged and bounded by time, where the SDK bounds their
number, and a multipart upload that an attempt may have begun is told of. Checksum headers and signed payloads are left out
where that is allowed: many stores refuse the former, and TLS protects the bytes already.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Literal, NamedTuple, Protocol, Self, cast
from urllib.parse import urlencode

import aiobotocore
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader, create_loader

from tusd_py import __version__, logs
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
    RequestObserver,
    StoreMisconfigured,
    StoreUnavailable,
    other_bucket,
)
from tusd_py.storage.s3.request_body import RequestBody

logger = logging.getLogger(__name__)

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 5.0
_QUIET_ATTEMPTS = 2
"""Attempts whose failure is no warning yet: stores ask to slow down now and then."""

_SMALL_BODY_BYTES = 256 * 1024
"""Sending as much in vain, to a store that refuses it, costs less than to wait for the store each time."""
_CONTINUE_SECONDS = 5.0
"""How long a store may take to ask for a body."""
_BUFFERED_BYTES = 4 * 1024 * 1024
"""Up to here bytes may lie in buffers of this machine: they do not prove that the store takes any."""
_UNASKED_SECONDS = 600.0
"""How long large bodies are sent without `Expect` after a store did not respond to it in time: it may only have been slow."""
_STANDSTILL_SECONDS = 30.0
"""Beyond what a busy event loop delays a timer: the process, or its machine, was stopped."""
_MOST_WAITS = 10
"""How many waits for the store an attempt without a body of ours may take: some complete an object slowly, a byte at a time."""
_MOST_MISMATCHES = 6
"""How often an object may be another one than was just seen, until its removal fails: the pauses between take some seconds."""
_NOT_SUPPORTED = "NotImplemented"
"""The code of a refusal of a header that the store does not know."""
_USER_AGENT = f"tusd-py/{__version__} aiobotocore/{aiobotocore.__version__}"

Response = Mapping[str, object]


@cache
def _descriptions() -> Loader:
    """One for all clients of the process: to read how S3's requests are written takes long."""
    return create_loader()


def _session() -> AioSession:
    session = get_session()
    session.register_component("data_loader", _descriptions())
    return session


@dataclass(frozen=True, slots=True)
class Encryption:
    """Encryption by the store. kms_key: its id for `aws:kms`; empty for the bucket's. bucket_key: use an S3 bucket key."""

    algorithm: Literal["AES256", "aws:kms", "aws:kms:dsse"]
    kms_key: str = ""
    bucket_key: bool = False


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket and how to use it.

    Attributes:
        name: Its name.
        endpoint: The store's URL; empty for AWS.
        public_endpoint: The store's URL in presigned URLs; empty for `endpoint`.
        region: Empty for the one that the SDK finds.
        path_style: Name the bucket in the path instead of the host; None to leave that to the SDK.
        encryption: For all objects; None for the bucket's own default.
        acl: A canned ACL for the uploads' bytes; empty for none.
        storage_class: Of the uploads' bytes; empty for the bucket's own default.
        cache_control: Of the uploads' bytes; empty for none.
        tags: Of the uploads' bytes.
        unsigned_bodies: Leave a body's SHA-256 out of the signature without TLS too.
        requests: Most requests at a time. One whose response is being read as a stream does not count.
        connect_seconds: Limit for opening a connection.
        response_seconds: Limit for each wait for the store.
        repeat_seconds: How long a request that fails for a passing reason is repeated; at least once, unless this is 0.
    """

    name: str
    endpoint: str = ""
    public_endpoint: str = ""
    region: str = ""
    path_style: bool | None = None
    encryption: Encryption | None = None
    acl: str = ""
    storage_class: str = ""
    cache_control: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    unsigned_bodies: bool = False
    requests: int = 64
    connect_seconds: float = 5.0
    response_seconds: float = 60.0
    repeat_seconds: float = 60.0


class _Body(Protocol):
    """The body of a response, as aiobotocore hands it out."""

    async def read(self, amount: int | None = None) -> bytes: ...

    def close(self) -> None: ...


class _Events(Protocol):
    """The events of a client, whose types the SDK leaves out."""

    def register_last(self, name: str, handler: Callable[..., None]) -> None: ...


class _Request(NamedTuple):
    """A request, which may be made several times.

    Attributes:
        operation: The method of the client.
        key: The object's, or what a request about the bucket asks for: for the log.
        send: That method.
        target: Its arguments.
        text: The request, for the texts of errors.
        needs: What a response has if the request had its effect: a 200 may come without a body.
    """

    operation: str
    key: str
    send: Callable[..., Awaitable[Response]]
    target: Mapping[str, object]
    text: str
    needs: str


class ObjectStore:
    """One bucket, and objects of others on the same store, whose keys are written `s3://bucket/key`.

    Its client is made with the first request, and again in another event loop.

    Upload ids and part numbers are explicit, so that any process can go on with a multipart upload that another one began.
    Requests that failed for a passing reason are repeated. A request whose response was lost may have had its effect all the
    same: a caller that depends on whether it had looks at the store again.

    Every method raises ObjectStoreError; those for which it matters name the subclasses. A body may be a buffer of the
    caller's, which must not change until the call returns.

    observer: told of all requests.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.observer: RequestObserver | None = None
        self._stack = AsyncExitStack()
        self._client: object = None
        self._signer: object = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(bucket.requests)
        self._moved_at = float("-inf")
        """When a request made progress last, by the event loop's clock."""
        self._asks_again_at = float("-inf")
        """When large bodies wait again until the store asks for them, by the monotonic clock."""
        self._takes_conditional_deletes = True
        """Whether the store is not known to refuse conditions of removals."""

    async def _open(self) -> object:
        """Return the client. Reads the configuration and finds credentials first. Raises StoreMisconfigured."""
        loop = asyncio.get_running_loop()
        if self._loop is loop and self._client is not None:
            return self._client
        if self._loop is not loop:
            # Connections belong to a loop. Those of one that has ended went with it.
            self._loop, self._client, self._signer = loop, None, None
            self._stack, self._opening = AsyncExitStack(), asyncio.Lock()
            self._slots = asyncio.Semaphore(self.bucket.requests)
        async with self._opening:
            if self._client is None:
                self._client = await self._make_client(self.bucket.endpoint)
            return self._client

    async def _open_signer(self) -> object:
        """Return the client that signs URLs, which name the store as those see it who get them. Raises StoreMisconfigured."""
        client, public = await self._open(), self.bucket.public_endpoint
        if not public:
            return client
        async with self._opening:
            if self._signer is None:
                self._signer = await self._make_client(public)
            return self._signer

    async def _make_client(self, endpoint: str) -> object:
        # At their debug level these log the headers of requests, which are signed.
        for name in ("botocore", "aiobotocore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        bucket = self.bucket
        s3: dict[str, object] = {}
        if bucket.path_style is not None:
            s3["addressing_style"] = "path" if bucket.path_style else "virtual"
        if bucket.unsigned_bodies or not endpoint.startswith("http://"):
            s3["payload_signing_enabled"] = False
        config = AioConfig(
            signature_version="s3v4",
            s3=s3,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},
            # Requests are limited here, where their wait has an end. A download holds its connection as long as its client
            # takes to read, and must not keep uploads from theirs.
            max_pool_connections=0,
            connector_args={"socket_factory": self._new_socket},
            connect_timeout=bucket.connect_seconds,
            read_timeout=bucket.response_seconds,
            # The SDK's own, which names every feature it uses, is made anew twice for each request.
            user_agent=_USER_AGENT,
            # What parameters there are, and of which types, is decided below.
            parameter_validation=False,
        )
        making = _session().create_client(
            "s3",
            endpoint_url=endpoint or None,
            region_name=bucket.region or None,
            config=config,
        )
        try:
            client: object = await self._stack.enter_async_context(making)
        except (BotoCoreError, ValueError) as problem:
            if isinstance(problem, BotoCoreError):
                raise meaning(problem, f"opening s3://{bucket.name}") from None
            # Of an endpoint that is no URL.
            reason = without_secrets(str(problem))
            raise StoreMisconfigured(f"opening s3://{bucket.name}: {reason}") from None
        events = cast(_Events, getattr(getattr(client, "meta"), "events"))  # noqa: B009 - untyped
        events.register_last("before-call.s3", self._choose_when_to_send)
        return client

    def _new_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Return a socket that ends once its peer has taken nothing for the limit of a wait.

        A connection that is closed keeps the bytes that it has not sent, among them the part of an upload, until it ends.
        """
        made = socket.socket(*address[:3])
        if sys.platform == "linux":
            milliseconds = min(int(1000 * self.bucket.response_seconds), 2**31 - 1)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        return made

    async def close(self) -> None:
        """Close all connections; the next request opens new ones."""
        self._client = self._signer = None
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    # Multipart uploads

    async def create_multipart(self, key: str, properties: Properties) -> NewMultipart:
        """Begin a multipart upload."""
        attempts = _Attempts(self.bucket)
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
        try:
            await self._request("abort_multipart_upload", key, {"UploadId": upload_id})
        except ObjectNotFound:
            return

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
            await asyncio.sleep(_FIRST_DELAY_SECONDS)

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
        try:
            await self._request("delete_object", key, {})
        except ObjectNotFound:
            return

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
                self.observer.repeated(_name_in_s3("delete_object"))
            conditions = _conditions(etag, if_absent=False) if removal.takes_conditions else {}
            removal.is_found = True
            try:
                request = await self._prepare("delete_object", key, conditions)
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

    # Requests

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

    def _name(self, key: str) -> str:
        return key if other_bucket(key) else f"s3://{self.bucket.name}/{key}"

    def _target(self, key: str) -> dict[str, object]:
        """The parameters that name an object; only the bucket without a key."""
        bucket, name = other_bucket(key) or (self.bucket.name, key)
        return {"Bucket": bucket, "Key": name} if name else {"Bucket": bucket}

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
            # Some stores repeat their last page for ever.
            if not page.get("IsTruncated") or not all(following.values()) or following == more:
                return
            more = following

    async def _request(
        self,
        operation: str,
        key: str,
        parameters: Mapping[str, object],
        *,
        needs: str = "",
        attempts: _Attempts | None = None,
        about: str = "",
    ) -> Response:
        """Make a request, and repeat it while it fails for a passing reason. See `_prepare`; attempts: told what happened."""
        attempts = attempts or _Attempts(self.bucket)
        request = await self._prepare(operation, key, parameters, needs=needs, about=about)
        while True:
            try:
                return await self._attempt(request, attempts)
            except ObjectStoreError as problem:
                # Not kept for later: its traceback refers to this frame, which has the body of the request.
                delay = attempts.delay_after(problem)
                if delay is None:
                    raise
                self._log_repeat(operation, request.key, problem, attempts.failed, delay)
            await asyncio.sleep(delay)
            if not attempts.may_begin(-_STANDSTILL_SECONDS):
                # The lock of an upload may have been lost, and the upload removed.
                raise StoreUnavailable(
                    f"{request.text}: this process stood still", code="Standstill"
                )
            if self.observer is not None:
                self.observer.repeated(_name_in_s3(operation))

    async def _prepare(
        self,
        operation: str,
        key: str,
        parameters: Mapping[str, object],
        *,
        needs: str = "",
        about: str = "",
    ) -> _Request:
        """Return a request with these parameters. key: the object's; empty for requests about the bucket."""
        send = cast("Callable[..., Awaitable[Response]]", getattr(await self._open(), operation))
        subject = key or about
        text = f"{operation} {self._name(subject)}"
        return _Request(operation, subject, send, {**self._target(key), **parameters}, text, needs)

    async def _attempt(self, request: _Request, attempts: _Attempts) -> Response:
        """Make a request once. Raises ObjectStoreError."""
        observer, name, outcome = self.observer, _name_in_s3(request.operation), "cancelled"
        began = time.monotonic()
        if observer is not None:
            observer.began(name)
        try:
            try:
                response = await self._send(request, attempts)
                self._moved_at = asyncio.get_running_loop().time()
            except (ClientError, BotoCoreError) as problem:
                # Not as its cause: the text of that may have what `meaning` leaves out.
                raise meaning(problem, request.text) from None
            except _Stalled as problem:
                raise StoreUnavailable(f"{request.text}: {problem}", code="Stalled") from None
            except (aiohttp.ClientError, OSError) as problem:
                # The SDK translates those of a request, and not those of the body of a response.
                code = type(problem).__name__
                raise StoreUnavailable(f"{request.text}: {code}", code=code) from None
            if request.needs and not response.get(request.needs):
                lacks = f"{request.text}: no {request.needs}"
                raise StoreUnavailable(lacks, code="Malformed", status=200)
            outcome = "ok"
        except ObjectStoreError as problem:
            outcome = problem.outcome
            raise
        finally:
            if observer is not None:
                observer.ended(name, outcome, time.monotonic() - began)
        return response

    async def _send(self, request: _Request, attempts: _Attempts) -> Response:
        """Send a request, with an end to each wait. Raises _Stalled, and what the client raises.

        The SDK's own limit begins once the body is sent.
        """
        bucket, loop = self.bucket, asyncio.get_running_loop()
        send, target = request.send, request.target
        body: RequestBody | None = None
        has_slot = False
        try:
            attempts.waited(await self._wait_for_slot())
            has_slot = True
            async with asyncio.timeout(bucket.response_seconds) as limit:
                data = target.get("Body")
                if not isinstance(data, bytes | bytearray | memoryview):
                    limit.reschedule(loop.time() + _MOST_WAITS * bucket.response_seconds)
                    return await send(**target)

                def renew(at: int) -> None:
                    if at > _BUFFERED_BYTES:
                        self._moved_at = loop.time()
                    # The writer may go on for a moment after the end.
                    with suppress(RuntimeError):
                        limit.reschedule(loop.time() + (bucket.response_seconds if at else first))

                first, asks = bucket.response_seconds, self._waits_to_be_asked(len(data))
                if asks:
                    first = min(first, bucket.connect_seconds + _CONTINUE_SECONDS)
                # A file of its own: an earlier attempt has read from another. Its length is said too, so that a request
                # which sends less cannot succeed.
                body = RequestBody(data, renew, waits_to_be_asked=asks)
                renew(0)
                response = await send(**{**target, "Body": body, "ContentLength": len(data)})
                if asks:
                    self._asks_again_at = float("-inf")
                return response
        except TimeoutError:
            raise self._stalled(body) from None
        finally:
            if has_slot:
                self._slots.release()

    async def _wait_for_slot(self) -> float:
        """Wait until another request may be made, as long as any that is under way makes progress. Raises _Stalled.

        Returns the seconds that it took.
        """
        if not self._slots.locked():
            await self._slots.acquire()
            return 0.0
        # A stalled upload gives its slot up after one wait, so that two are enough to see one become free.
        loop, patience = asyncio.get_running_loop(), 2 * self.bucket.response_seconds
        waiting = asyncio.ensure_future(self._slots.acquire())
        began = loop.time()
        try:
            while not waiting.done():
                left = max(began, self._moved_at) + patience - loop.time()
                if left <= 0:
                    raise _Stalled(
                        f"none of {self.bucket.requests} requests that are under way goes on"
                    )
                await asyncio.wait([waiting], timeout=left)
            return loop.time() - began
        except BaseException:
            if not waiting.cancel() and not waiting.cancelled():
                self._slots.release()
            raise

    def _stalled(self, body: RequestBody | None) -> _Stalled:
        if body is None or body.tell():
            return _Stalled("the store does not go on")
        if body.waits_to_be_asked:
            # Proxies that know no Expect wait for the body: it is sent at once for a while (RFC 9110, 10.1.1).
            self._asks_again_at = time.monotonic() + _UNASKED_SECONDS
        return _Stalled("the store does not ask for the body")

    def _waits_to_be_asked(self, size: int) -> bool:
        now = time.monotonic()
        if size <= _SMALL_BODY_BYTES or now < self._asks_again_at:
            return False
        if self._asks_again_at > float("-inf"):
            # One request tries it, and others do not wait with it.
            self._asks_again_at = now + _UNASKED_SECONDS
        return True

    @staticmethod
    def _choose_when_to_send(params: Mapping[str, object], **_: object) -> None:
        """Let a small body follow the head of its request without waiting until the store asks for it (RFC 9110, 10.1.1).

        Where stores ask, a large body is not sent to one that refuses it, and the reason arrives. The SDK calls this before
        each request.
        """
        body = params.get("body")
        if not (isinstance(body, RequestBody) and body.waits_to_be_asked):
            cast("dict[str, str]", params["headers"]).pop("Expect", None)

    def _log_repeat(
        self, operation: str, key: str, failure: ObjectStoreError, failed: int, delay: float
    ) -> None:
        logs.event(
            logger,
            logging.WARNING if failed > _QUIET_ATTEMPTS else logging.INFO,
            "s3 request repeated",
            operation=operation,
            bucket=self.bucket.name,
            key=key,
            code=failure.code,
            status=failure.status,
            request_id=failure.request_id,
            failed=failed,
            seconds=round(delay, 3),
        )


class _Stalled(Exception):
    """A wait for the store has taken too long. The text says for what."""


class _Attempts:
    """The attempts of one request. may_have_acted: one of those that failed may have had its effect."""

    def __init__(self, bucket: Bucket) -> None:
        self.failed = 0
        self.may_have_acted = False
        self._bucket = bucket
        self._began = time.monotonic()

    def delay_after(self, failure: ObjectStoreError) -> float | None:
        """Return the seconds to wait before the next attempt; None if there is to be none."""
        if not isinstance(failure, StoreUnavailable):
            self.failed += 1
            return None
        self.may_have_acted = True
        return self.next_delay()

    def next_delay(self) -> float | None:
        """Count an attempt that failed; return the seconds before the next one, None if there is no time for it."""
        self.failed += 1
        longest = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** (self.failed - 1))
        # Spread out, so that those who were refused together do not come back together.
        delay = longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        return delay if self.may_begin(delay) else None

    def waited(self, seconds: float) -> None:
        """Leave out the time that an attempt waited until it could be made."""
        self._began += seconds

    def may_begin(self, seconds: float) -> bool:
        """Return whether another attempt may begin in `seconds`."""
        limit = self._bucket.repeat_seconds
        if limit and self.failed == 1:
            # The first one may have waited for a connection, and then for the store.
            limit += 2 * self._bucket.response_seconds
        return time.monotonic() - self._began + seconds <= limit


class _Removal:
    """The attempts of one conditional removal.

    Attributes:
        takes_conditions: Whether the store is asked with a condition.
        is_found: An object was seen that may go.
        lacks_support: The store has said that it knows no such condition.
    """

    def __init__(self, bucket: Bucket, *, takes_conditions: bool) -> None:
        self.attempts = _Attempts(bucket)
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


@cache
def _name_in_s3(operation: str) -> str:
    return operation.title().replace("_", "")


# Responses, whose shapes nobody has checked before


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
