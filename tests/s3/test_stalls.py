"""A store, or what is before it, that stands still: every wait for it ends, and what was asked for is asked for again."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from typing import Literal

import pytest
import uvloop
from aiohttp import web

from tests.conftest import MakeServer
from tests.s3.conftest import OpenStore
from tests.s3.proxies import Answer, Exchange, FaultProxy, HttpProxy
from tests.s3.servers import BUCKET, ENVIRONMENT, S3Server
from tests.s3.test_server import Servers
from tests.support.tus import Tus
from tests.support.waiting import wait_until
from tusd_py.storage.s3.aiobotocore_store import Bucket
from tusd_py.storage.s3.object_store import (
    MIN_PART_BYTES,
    ObjectKind,
    Properties,
    StoreUnavailable,
)
from tusd_py.storage.s3.requests import ObjectStore

PART = MIN_PART_BYTES
BODY = random.Random(8).randbytes(2 * PART + 1000)
PLAIN = Properties()
SMALL = BODY[:1000]
Stall = Literal["before the body", "in the body", "after the body"]
STALLS: tuple[Stall, ...] = ("before the body", "in the body", "after the body")

_CHOSEN = web.RequestKey("chosen", str)


class StandingStill(HttpProxy):
    """Stands still at a point of each request that stores a part or more, until the end. stalled: how many did.

    stalls: the points, of the next requests in turn. always: that of all others; None to pass them on.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self.stalls: list[Stall] = []
        self.always: Stall | None = None
        self.stalled = 0

    async def _stand_still(self, request: web.Request, *points: Stall) -> None:
        if _CHOSEN not in request:
            is_large = request.method == "PUT" and (request.content_length or 0) >= PART
            chosen = self.stalls.pop(0) if self.stalls and is_large else self.always
            request[_CHOSEN] = chosen if is_large and chosen else ""
        if request[_CHOSEN] in points:
            self.stalled += 1
            # The connection takes what the buffers of the system have room for.
            transport = request.transport
            assert isinstance(transport, asyncio.Transport)
            transport.pause_reading()
            await self._stop.wait()
            raise web.HTTPServiceUnavailable

    async def ask_for_body(self, request: web.Request) -> None:
        await self._stand_still(request, "before the body")
        await super().ask_for_body(request)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await self._stand_still(request, "before the body", "in the body")
        await request.read()
        await self._stand_still(request, "after the body")
        return await super().answer(request)


class IgnoringExpect(HttpProxy):
    """Knows no Expect: it waits for the body. expected: how many requests waited to be asked for it."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self.expected = 0

    async def ask_for_body(self, request: web.Request) -> None:
        self.expected += 1


@pytest.fixture
async def still(seaweedfs: S3Server) -> AsyncIterator[StandingStill]:
    with StandingStill(seaweedfs.address) as proxy:
        yield proxy


@pytest.mark.parametrize("stall", STALLS)
async def test_an_attempt_that_stands_still_is_made_again(
    still: StandingStill, open_store: OpenStore, prefix: str, stall: Stall
) -> None:
    """Once at least, even if it took as long as all repeats may."""
    store = await open_store(still.endpoint, response_seconds=3.0, repeat_seconds=3.0)
    upload = (await store.create_multipart(f"{prefix}x", PLAIN)).upload_id
    still.stalls = [stall]
    part = await store.upload_part(f"{prefix}x", upload, 1, BODY)
    await store.complete(f"{prefix}x", upload, [part])
    assert (await store.read(f"{prefix}x", limit=len(BODY)))[1] == BODY
    assert still.stalled == 1


@pytest.mark.parametrize("stall", STALLS)
async def test_a_store_that_stands_still_is_away(
    still: StandingStill, open_store: OpenStore, prefix: str, stall: Stall
) -> None:
    store = await open_store(still.endpoint, response_seconds=2.0, repeat_seconds=0)
    still.always = stall
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.put(f"{prefix}x", BODY, PLAIN, kind=ObjectKind.DATA)
    assert time.monotonic() - began < 10
    assert still.stalled == 1


class Slow(HttpProxy):
    """Takes its time for each request."""

    seconds = 0.7

    async def handle(self, exchange: Exchange) -> Answer:
        await asyncio.sleep(self.seconds)
        return await super().handle(exchange)


@pytest.mark.parametrize(("seconds", "refused"), [(0.5, False), (60.0, True)])
async def test_requests_wait_for_a_connection_as_long_as_others_go_on(
    seaweedfs: S3Server, open_store: OpenStore, prefix: str, seconds: float, refused: bool
) -> None:
    with Slow(seaweedfs.address) as slow:
        slow.seconds = seconds
        store = await open_store(slow.endpoint, response_seconds=2.0, repeat_seconds=0, requests=1)
        puts = (
            store.put(f"{prefix}{number}", SMALL, PLAIN, kind=ObjectKind.RECORD)
            for number in range(10)
        )
        # The last one for longer than two waits for the store take.
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert ("requests that are under way goes on" in str(results[-1])) is refused
        assert (sum(isinstance(each, str) for each in results) == 10) is not refused
        # What they waited for is free again.
        slow.seconds = 0
        await store.put(f"{prefix}x", SMALL, PLAIN, kind=ObjectKind.RECORD)


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no such limit")
def test_bytes_that_a_store_does_not_take_leave_the_memory(
    seaweedfs: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the event loop of servers, which sends from the buffer of a part."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    part = bytearray(32 * 1024 * 1024)

    async def put(endpoint: str) -> None:
        bucket = Bucket(
            BUCKET, endpoint=endpoint, path_style=True, response_seconds=3.0, repeat_seconds=0
        )
        async with ObjectStore(bucket) as store:
            with pytest.raises(StoreUnavailable, match="does not go on"):
                await store.put(f"{prefix}x", part, PLAIN, kind=ObjectKind.DATA)
            await asyncio.to_thread(wait_until, lambda: is_free(part), "the connection's end", 20)

    with StandingStill(seaweedfs.address) as proxy:
        proxy.always = "in the body"
        uvloop.run(put(proxy.endpoint))


def is_free(buffer: bytearray) -> bool:
    """Whether nothing reads from a buffer."""
    try:
        buffer.append(0)
    except BufferError:
        return False
    return True


def test_a_client_of_a_store_that_stood_still_goes_on(
    make_server: MakeServer, seaweedfs: S3Server, prefix: str
) -> None:
    with StandingStill(seaweedfs.address) as proxy:
        limits = ("--s3-timeout", "3s", "--s3-retry-time", "1s")
        tus = Tus(Servers(make_server, proxy.endpoint, prefix)(*limits))
        path = tus.new(len(BODY))
        proxy.always = "before the body"
        refused = tus.patch(path, 0, BODY)
        assert (refused.status, refused.code) == (503, "ERR_UNAVAILABLE")
        proxy.always = None
        offset = tus.offset(path)
        assert offset < len(BODY)
        assert tus.patch(path, offset, BODY[offset:]).status == 204
        assert tus.get(path).body == BODY


def test_a_proxy_that_knows_no_expect_is_waited_for_once(
    make_server: MakeServer, seaweedfs: S3Server, prefix: str
) -> None:
    with IgnoringExpect(seaweedfs.address) as proxy:
        tus = Tus(Servers(make_server, proxy.endpoint, prefix)("--s3-timeout", "2s"))
        assert tus.get(tus.finished(BODY)).body == BODY
        # As many as were sent at once.
        expected = proxy.expected
        assert 1 <= expected <= 2
        assert tus.get(tus.finished(BODY)).body == BODY
        assert proxy.expected == expected


async def test_a_small_body_is_sent_whole_again_after_its_connection_ended(
    seaweedfs: S3Server, open_store: OpenStore, prefix: str
) -> None:
    """As of a store that closes connections which have been idle, just when one is used again."""
    with FaultProxy(seaweedfs.address) as proxy:
        store = await open_store(proxy.endpoint, response_seconds=5.0, repeat_seconds=0)
        await store.put(f"{prefix}x", b"first", PLAIN, kind=ObjectKind.RECORD)
        proxy.plan("PutObject", "cut")
        # The HTTP client repeats it by itself.
        await store.put(f"{prefix}x", SMALL, PLAIN, kind=ObjectKind.RECORD)
        assert proxy.requests["PutObject"] == 3
        assert (await store.read(f"{prefix}x", limit=len(SMALL)))[1] == SMALL
