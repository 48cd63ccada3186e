"""Removals whose requests to the bucket arrive late: another upload has the key by then, and keeps its bytes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.s3.conftest import Opened
from tests.s3.contents import Contents, LateStore
from tests.s3.proxies import (
    Answer,
    Exchange,
    FaultProxy,
    Hold,
    RulesProxy,
    error,
    no_conditional_removals,
)
from tests.s3.servers import BUCKET, ENVIRONMENT, S3Server
from tests.s3.test_store import LENGTH, PART, WHOLE, created, finished, pieces
from tests.s3.test_taken_keys import HOOK
from tests.support.forked import ForkedServer
from tests.support.store import append, content_of
from tests.support.tus import Tus, metadata
from tusd_py.locks.base import UNFENCED, HeldFence, LeaseLost
from tusd_py.locks.memory import MemoryLease, MemoryLocks
from tusd_py.storage.base import StorageError, Upload, UploadInfo
from tusd_py.storage.s3.object_store import ObjectKind, Properties
from tusd_py.storage.s3.record import TOKEN
from tusd_py.storage.s3.store import S3Store

PLACE = "study/1.dcm"


@pytest.fixture
def proxy(seaweedfs: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(seaweedfs.address) as proxy:
        yield proxy


@pytest.fixture
def contents(seaweedfs: S3Server, prefix: str) -> Contents:
    return Contents(seaweedfs, prefix)


# -- through the front ---------------------------------------------------------------------------


@pytest.fixture
def tus(tmp_path: Path, proxy: FaultProxy, prefix: str) -> Iterator[Tus]:
    hook = tmp_path / "hook.py"
    hook.write_text(HOOK)
    server = ForkedServer(
        tmp_path / "server",
        *("--s3-bucket", BUCKET, "--s3-endpoint", proxy.endpoint, "--s3-part-size", "5MiB"),
        *("--s3-object-prefix", prefix, "--s3-info-prefix", prefix, "--hook", str(hook)),
        env=ENVIRONMENT,
    )
    try:
        server.wait_until_up()
        yield server.client()
    finally:
        server.kill9()


def new_at_place(tus: Tus, prefix: str, body: bytes) -> str:
    """A finished upload at the place."""
    path = tus.new(len(body), headers={"Upload-Metadata": metadata(key=prefix + PLACE)})
    assert tus.patch(path, 0, body).status == 204
    return path


@pytest.mark.parametrize("body", [b"other", b"hello"], ids=["other bytes", "the same bytes"])
def test_a_removal_whose_response_was_lost_does_not_remove_the_next_upload_at_its_place(
    tus: Tus, proxy: FaultProxy, prefix: str, body: bytes
) -> None:
    """The request is repeated when the object is gone since the first attempt; no lock of that upload is in the way."""
    first, second = new_at_place(tus, prefix, b"hello"), ""
    answers: list[int] = []
    with proxy.hold("DeleteObject", f"{prefix}{PLACE}$", after=True) as hold:
        removal = threading.Thread(target=lambda: answers.append(tus.delete(first).status))
        removal.start()
        hold.wait()
        # Refused, or else its bytes have to stay.
        with suppress(AssertionError):
            second = new_at_place(tus, prefix, body)
    removal.join(60)
    assert answers == [204]
    second = second or new_at_place(tus, prefix, body)
    assert tus.get(second).body == body


def test_a_request_to_remove_that_arrives_late_does_not_remove_the_next_upload_at_its_place(
    tus: Tus, proxy: FaultProxy, prefix: str, contents: Contents
) -> None:
    """It is on its way until a sweep has freed the place, which another upload has since."""
    first = new_at_place(tus, prefix, b"hello")
    with proxy.hold("DeleteObject", f"{prefix}{PLACE}$", late=True) as hold:
        removal = threading.Thread(target=lambda: tus.delete(first))
        removal.start()
        hold.wait()
        contents.tidy()
        second = new_at_place(tus, prefix, b"other")
    removal.join(60)
    assert tus.get(second).body == b"other"


# -- two servers ---------------------------------------------------------------------------------


@pytest.fixture
async def late(proxy: FaultProxy, prefix: str, opened: Opened) -> AsyncIterator[S3Store]:
    """A store whose requests the proxy can hold. `opened` sets the environment."""
    async with AsyncExitStack() as stack:
        yield Opened(stack, proxy.endpoint, prefix)()


async def while_held(
    hold: Hold, doing: Awaitable[object], do: Callable[[], Awaitable[object]]
) -> None:
    """Let something happen while a request of `doing` stands still, which goes on after that."""
    task = asyncio.ensure_future(doing)
    await asyncio.to_thread(hold.wait)
    await do()
    hold.release()
    with suppress(LeaseLost, StorageError):
        await task


async def interrupted(store: S3Store, proxy: FaultProxy) -> None:
    """Remove the upload "x" until its record is gone, and nothing else."""
    with proxy.hold("DeleteObject", r"/x\.info$", after=True) as hold:
        task = asyncio.ensure_future(store.remove("x", fence=UNFENCED))
        await asyncio.to_thread(hold.wait)
        task.cancel()


async def successor(store: S3Store) -> Upload:
    """An upload with the id "x", whose bytes are other ones."""
    return await append(store, await created(store, 5), b"other")


async def test_a_record_is_not_removed_that_another_upload_has_stored_since(
    late: S3Store, opened: Opened, proxy: FaultProxy
) -> None:
    """A server stood still while it removed an upload; another one has removed it meanwhile."""
    other = opened()
    await append(late, await created(late, 5), b"hel")

    async def go_on() -> None:
        await other.remove("x", fence=UNFENCED)
        await successor(other)

    with proxy.hold("DeleteObject", r"/x\.info$", late=True) as hold:
        await while_held(hold, late.remove("x", fence=UNFENCED), go_on)
    upload = await opened().load("x")
    assert await content_of(other, await finished(other, upload)) == b"other"


@pytest.mark.parametrize("is_small", [True, False])
async def test_a_sweep_does_not_remove_the_object_or_the_tail_of_the_next_upload_with_the_id(
    late: S3Store, opened: Opened, proxy: FaultProxy, is_small: bool
) -> None:
    """The removal was interrupted before anything was freed, and the next upload comes while the sweep frees it."""
    other, key = opened(), r"/x$" if is_small else r"/x\.part$"
    first = WHOLE[:5] if is_small else WHOLE[:10]
    await append(other, await created(other, 5 if is_small else LENGTH), first)
    await interrupted(late, proxy)
    body = b"other" if is_small else WHOLE[5:][: PART + 10]

    async def go_on() -> None:
        upload = await created(other, len(body))
        for piece in pieces(body[:-1] if not is_small else body):
            with suppress(LeaseLost):
                # A tail of the removed upload is in the way at first.
                upload = await append(other, upload, piece)
                continue
            upload = await append(other, await other.load("x"), piece)

    sweep = LateStore(late.objects, late.options)
    with proxy.hold("DeleteObject", key, late=True) as hold:
        await while_held(hold, sweep.tidy(tombstone_ttl=86_400.0), go_on)
    upload = await opened().load("x")
    if not is_small:
        assert upload.offset == len(body) - 1
        upload = await append(other, await other.load("x"), body[-1:])
    assert await content_of(other, await finished(other, upload)) == body


async def test_the_mark_of_a_place_is_not_removed_that_another_upload_has_taken_since(
    late: S3Store, opened: Opened, proxy: FaultProxy
) -> None:
    other = opened()
    await late.create(UploadInfo("x", 5, location=PLACE, created_at=1.0))

    async def go_on() -> None:
        await LateStore(other.objects, other.options).tidy(tombstone_ttl=86_400.0)
        await other.create(UploadInfo("y", 5, location=PLACE, created_at=1.0))

    with proxy.hold("DeleteObject", r"/taken/", late=True) as hold:
        await while_held(hold, late.remove("x", fence=UNFENCED), go_on)
    assert await other._places.holder(PLACE) == "y"


async def test_a_sweep_frees_what_a_removed_upload_left_under_its_lock(
    late: S3Store, opened: Opened, proxy: FaultProxy, contents: Contents
) -> None:
    """Otherwise the next upload with the id could have the same bytes, which no condition tells apart."""
    other, locks = opened(), MemoryLocks()
    await append(other, await created(other, LENGTH), WHOLE[:10])
    await interrupted(late, proxy)
    sweep = LateStore(late.objects, late.options)
    lease = locks.try_acquire("x")
    assert lease is not None
    await sweep.tidy(tombstone_ttl=86_400.0, locks=locks)
    # Somebody has the lock.
    assert "x.part" in contents.keys()  # noqa: SIM118
    await lease.release()

    async def try_lock() -> None:
        assert locks.try_acquire("x") is None

    with proxy.hold("DeleteObject", r"/x\.part$", after=True) as hold:
        await while_held(hold, sweep.tidy(tombstone_ttl=86_400.0, locks=locks), try_lock)
    assert "x.part" not in contents.keys()  # noqa: SIM118
    assert locks.try_acquire("x") is not None


class LostLease(MemoryLease):
    def fence(self) -> HeldFence:
        return HeldFence(lambda: False)


class LosingLocks(MemoryLocks):
    """Their leases are lost as soon as they are acquired."""

    @asynccontextmanager
    async def try_acquire_many(
        self, upload_ids: Sequence[str]
    ) -> AsyncIterator[dict[str, MemoryLease]]:
        yield {upload_id: LostLease(self, upload_id) for upload_id in upload_ids}


async def test_a_sweep_that_has_lost_its_lock_removes_nothing(
    opened: Opened, contents: Contents
) -> None:
    """Another holder may have begun an upload with the id, and goes on with the other ids."""
    store = opened()
    for upload_id in ("x", "y"):
        await store._places.take(f"study/{upload_id}", upload_id)
        tail = Properties(metadata={TOKEN: "t"})
        await store.objects.put(store.layout.tail(upload_id), b"tail", tail, kind=ObjectKind.RECORD)
    sweep, before = LateStore(store.objects, store.options), contents.keys()
    await sweep.tidy(tombstone_ttl=86_400.0, locks=LosingLocks())
    assert contents.keys() == before
    await sweep.tidy(tombstone_ttl=86_400.0, locks=MemoryLocks())
    assert contents.keys() == set()


# -- stores that know no such condition ----------------------------------------------------------


async def test_where_removals_take_no_condition_they_go_without_one(
    seaweedfs: S3Server, prefix: str, opened: Opened, contents: Contents
) -> None:
    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(RulesProxy(seaweedfs.address, no_conditional_removals))
        store = Opened(stack, proxy.endpoint, prefix)()
        for _ in range(2):
            await append(store, await created(store, LENGTH), *pieces(WHOLE[: PART + 10]))
            await store.remove("x", fence=UNFENCED)
        assert proxy.refused["no_conditional_removals"] == 1
    assert contents.pending() == set()
    left = contents.keys()
    assert {key for key in left if not key.startswith(".tusd-py/")} == set()


async def test_one_refusal_that_says_nothing_does_not_end_conditions(
    seaweedfs: S3Server, prefix: str, opened: Opened
) -> None:
    """A proxy may have refused the request. The next attempt goes without one, after another look."""
    told: list[str] = []

    def refuse_once(_proxy: RulesProxy, exchange: Exchange) -> Answer | None:
        if exchange.operation != "DeleteObject":
            return None
        told.append("condition" if "If-Match" in exchange.headers else "no condition")
        return error(400, "InvalidRequest") if len(told) == 2 else None

    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(RulesProxy(seaweedfs.address, refuse_once))
        objects = Opened(stack, proxy.endpoint, prefix)().objects
        for key in (f"{prefix}a", f"{prefix}b"):
            etag = await objects.put(key, b"x", Properties(), kind=ObjectKind.RECORD)

            async def look(etag: str = etag) -> str:
                told.append("look")
                return etag

            assert await objects.delete_if(key, look)
    assert told == ["look", "condition", "look", "no condition", "look", "condition"]
    assert await opened.keys() == []


async def test_an_object_that_a_store_still_shows_is_looked_at_later_again(
    seaweedfs: S3Server, prefix: str, opened: Opened
) -> None:
    """Its removal is refused as if it were another one (SeaweedFS); fast looks would all see the same."""
    gone_at, looked = 0.0, 0

    async def look() -> str:
        nonlocal gone_at, looked
        looked += 1
        gone_at = gone_at or time.monotonic() + 0.5
        return '"seen"' if time.monotonic() < gone_at else ""

    assert await opened().objects.delete_if(f"{prefix}x", look)
    assert looked <= 6


async def test_where_removals_take_no_condition_each_attempt_looks_again(
    seaweedfs: S3Server,
    opened: Opened,
    late: S3Store,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bucket asks to slow down, and the next upload has its object there before the second attempt."""
    monkeypatch.setattr("tusd_py.storage.s3.aiobotocore_store.FIRST_DELAY_SECONDS", 4.0)
    other, refused = opened(), threading.Event()

    def slow_down(_proxy: RulesProxy, exchange: Exchange) -> Answer | None:
        if exchange.operation != "DeleteObject" or not exchange.key.endswith("/x"):
            return None
        if refused.is_set():
            return None
        refused.set()
        return error(503, "SlowDown")

    await append(other, await created(other, 5), b"hello")
    await interrupted(late, proxy)
    async with AsyncExitStack() as stack:
        rules = RulesProxy(seaweedfs.address, no_conditional_removals, slow_down)
        store = Opened(stack, stack.enter_context(rules).endpoint, late.layout.info_prefix)()
        sweep = LateStore(store.objects, store.options)
        sweeping = asyncio.ensure_future(sweep.tidy(tombstone_ttl=86_400.0))
        await asyncio.to_thread(refused.wait, 60)
        await successor(other)
        await sweeping
    upload = await opened().load("x")
    assert await content_of(other, await finished(other, upload)) == b"other"
