"""Requests to an object store by aiobotocore: the whole chain of credentials, regions and endpoints that its SDK knows.

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
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple, Protocol, Self, cast

import aiobotocore
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader, create_loader

from tusd_py import __version__, logs
from tusd_py.storage.s3.failures import meaning, without_secrets
from tusd_py.storage.s3.object_store import (
    ObjectStoreError,
    RequestObserver,
    StoreMisconfigured,
    StoreUnavailable,
    other_bucket,
)
from tusd_py.storage.s3.request_body import RequestBody

logger = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 0.1
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
_USER_AGENT = f"tusd-py/{__version__} aiobotocore/{aiobotocore.__version__}"

Response = Mapping[str, object]


@cache
def _descriptions() -> Loader:
    """One for all clients of the process: to read how S3's requests are written takes long."""
    return create_loader()


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


class AiobotocoreClient:
    """Makes requests about one bucket. The client is made with the first request, and again in another event loop.

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
        session = get_session()
        session.register_component("data_loader", _descriptions())
        making = session.create_client(
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

    # Requests

    def _name(self, key: str) -> str:
        return key if other_bucket(key) else f"s3://{self.bucket.name}/{key}"

    def _target(self, key: str) -> dict[str, object]:
        """The parameters that name an object; only the bucket without a key."""
        bucket, name = other_bucket(key) or (self.bucket.name, key)
        return {"Bucket": bucket, "Key": name} if name else {"Bucket": bucket}

    async def _request(
        self,
        operation: str,
        key: str,
        parameters: Mapping[str, object],
        *,
        needs: str = "",
        attempts: Attempts | None = None,
        about: str = "",
    ) -> Response:
        """Make a request, and repeat it while it fails for a passing reason. See `_prepare`; attempts: told what happened."""
        attempts = attempts or Attempts(self.bucket)
        client = await self._open()
        request = self._prepare(client, operation, key, parameters, needs=needs, about=about)
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
                self.observer.repeated(name_in_s3(operation))

    def _prepare(
        self,
        client: object,
        operation: str,
        key: str,
        parameters: Mapping[str, object],
        *,
        needs: str = "",
        about: str = "",
    ) -> _Request:
        """Return a request with these parameters. key: the object's; empty for requests about the bucket."""
        send = cast("Callable[..., Awaitable[Response]]", getattr(client, operation))
        subject = key or about
        text = f"{operation} {self._name(subject)}"
        return _Request(operation, subject, send, {**self._target(key), **parameters}, text, needs)

    async def _attempt(self, request: _Request, attempts: Attempts) -> Response:
        """Make a request once. Raises ObjectStoreError."""
        observer, name, outcome = self.observer, name_in_s3(request.operation), "cancelled"
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

    async def _send(self, request: _Request, attempts: Attempts) -> Response:
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


class Attempts:
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
        longest = min(_LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** (self.failed - 1))
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


@cache
def name_in_s3(operation: str) -> str:
    return operation.title().replace("_", "")
