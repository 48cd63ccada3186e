"""Two servers at one upload, one of which stood still in the middle of a request and goes on after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from dataclasses import replace

import pytest

from tests.s3.conftest import Opened
from tests.s3.contents import Contents
from tests.s3.proxies import Answer, Exchange, RulesProxy, error
from tests.s3.servers import S3Server
from tests.s3.test_leftovers import swept
from tests.s3.test_store import LENGTH, PART, WHOLE, created, finished, pieces
from tests.support.store import PLAIN, append, content_of, write_all
from tusd_py.locks.base import UNFENCED, LeaseLost
from tusd_py.storage.base import StorageError, Upload, UploadExists, UploadInfo
from tusd_py.storage.s3.object_store import (
    NewMultipart,
    ObjectHead,
    ObjectKind,
    Properties,
    StoreUnavailable,
)
from tusd_py.storage.s3.store import S3Store


@pytest.fixture
def contents(seaweedfs: S3Server, prefix: str) -> Contents:
    return Contents(seaweedfs, prefix)


def before_put(store: S3Store, ending: str, do: Callable[[], Awaitable[object]]) -> None:
    """Let something happen just before the next object whose key ends so is stored."""
    original = store.objects.put

    async def put(key: str, *arguments: object, **named: object) -> str:
        if key.endswith(ending):
            store.objects.put = original  # type: ignore[method-assign]
            await do()
        return await original(key, *arguments, **named)  # type: ignore[arg-type]

    store.objects.put = put  # type: ignore[method-assign]


def after_put(store: S3Store, ending: str, do: Callable[[], Awaitable[object]]) -> None:
    """Let something happen between the storing of the next object whose key ends so, and the response."""
    original = store.objects.put

    async def put(key: str, *arguments: object, **named: object) -> str:
        etag = await original(key, *arguments, **named)  # type: ignore[arg-type]
        if key.endswith(ending):
            store.objects.put = original  # type: ignore[method-assign]
            await do()
        return etag

    store.objects.put = put  # type: ignore[method-assign]


class Lease:
    """A fence that can be lost."""

    is_lost = False

    def __call__(self) -> AbstractContextManager[None]:
        if self.is_lost:
            raise LeaseLost("lost")
        return UNFENCED()


# -- what a process knows ------------------------------------------------------------------------


async def test_a_claim_that_was_late_does_not_hide_what_the_next_request_stored(
    opened: Opened,
) -> None:
    """Both are in one process; the bucket's response to the first one's claim comes when the second one is done."""
    store, lease = opened(), Lease()
    before = opened()
    upload = await append(before, await created(before, LENGTH), WHOLE[:10])

    async def go_on() -> None:
        lease.is_lost = True
        assert (await append(store, await store.load("x"), WHOLE[10:20])).offset == 20

    after_put(store, "x.info", go_on)
    with pytest.raises(LeaseLost):
        await store.open_writer(await store.load("x"), PLAIN, fence=lease)
    assert (await store.load("x")).offset == 20
    upload = await append(store, await store.load("x"), *pieces(WHOLE[20:]))
    assert await content_of(opened(), await finished(store, upload)) == WHOLE


async def test_a_slow_look_does_not_hide_what_was_stored_meanwhile(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to the bucket had failed, so that it is asked by both."""
    store = opened()
    upload = await append(store, await created(store, LENGTH), WHOLE[:10])

    async def fail(*_arguments: object, **_named: object) -> str:
        raise StoreUnavailable("no response")

    with monkeypatch.context() as context:
        context.setattr(store.objects, "put", fail)
        with pytest.raises(StorageError):
            await store.save(upload.info, fence=UNFENCED)
    original = store.objects.head

    async def head(key: str) -> ObjectHead:
        found = await original(key)
        if key == store.layout.tail("x"):
            store.objects.head = original  # type: ignore[method-assign]
            assert (await append(store, await store.load("x"), WHOLE[10:20])).offset == 20
        return found

    store.objects.head = head  # type: ignore[method-assign]
    assert (await store.load("x")).offset == 20
    assert (await store.load("x")).offset == 20


async def test_a_look_during_a_request_does_not_hide_what_it_stores(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the process knew of the upload made room for another one, and was looked up again."""
    monkeypatch.setattr("tusd_py.storage.s3.store._KEPT_LIVE", 1)
    store = opened()
    upload = await append(store, await created(store, LENGTH), WHOLE[:10])
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await created(store, 5, "y")
    assert (await store.load("x")).offset == 10
    await write_all(writer, WHOLE[10:20])
    await writer.close(sync=False)
    assert (await store.load("x")).offset == 20


async def test_a_slow_look_does_not_hide_what_a_claim_stored_meanwhile(opened: Opened) -> None:
    """It has read the record that the claim stored, and none of the bytes that followed."""
    store, before = opened(), opened()
    await append(before, await created(before, LENGTH), WHOLE[:10])
    upload = await store.load("x")
    original, put = store.objects.head, store.objects.put
    claimed, may_go_on = asyncio.Event(), asyncio.Event()

    async def slow_put(key: str, *arguments: object, **named: object) -> str:
        etag = await put(key, *arguments, **named)  # type: ignore[arg-type]
        if key.endswith("x.info"):
            claimed.set()
            await may_go_on.wait()
        return etag

    async def head(key: str) -> ObjectHead:
        found = await original(key)
        if key == store.layout.tail("x"):
            store.objects.head = original  # type: ignore[method-assign]
            may_go_on.set()
            assert (await appending).offset == 20
        return found

    store.objects.put = slow_put  # type: ignore[method-assign]
    appending = asyncio.create_task(append(store, upload, WHOLE[10:20]))
    await claimed.wait()
    store.objects.head = head  # type: ignore[method-assign]
    assert (await store.load("x")).offset == 20
    assert (await store.load("x")).offset == 20


async def test_a_look_that_outlasts_the_upload_is_not_remembered(opened: Opened) -> None:
    """It would show an unfinished one, which expires."""
    store = opened()
    store._is_alone = True
    upload = await append(store, await created(store, 20), WHOLE[:10])
    original = store.objects.head
    store.forget(store._live["x"])

    async def head(key: str) -> ObjectHead:
        found = await original(key)
        if key == store.layout.tail("x"):
            store.objects.head = original  # type: ignore[method-assign]
            await finished(store, await append(store, upload, WHOLE[10:20]))
        return found

    store.objects.head = head  # type: ignore[method-assign]
    await store.load("x")
    assert (await store.load("x")).finished


async def test_a_look_during_a_refused_body_does_not_count_its_parts(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tusd_py.storage.s3.store._KEPT_LIVE", 1)
    store = opened()
    store._is_alone = True
    upload = await append(store, await created(store, None), WHOLE[:10])
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, *pieces(WHOLE[10 : PART + 10]))
    await asyncio.wait(writer._sending)  # type: ignore[attr-defined]
    await created(store, 5, "y")
    assert (await store.load("x")).offset == PART
    await writer.discard()
    await writer.close(sync=False)
    assert (await store.load("x")).offset == 10


async def test_a_request_that_ends_late_does_not_hide_what_the_next_one_stored(
    opened: Opened,
) -> None:
    store, lease = opened(), Lease()
    upload = await append(store, await created(store, LENGTH), WHOLE[:10])
    writer = await store.open_writer(upload, PLAIN, fence=lease)
    await write_all(writer, WHOLE[10:20])

    async def go_on() -> None:
        lease.is_lost = True
        store.forget(store._live["x"])
        assert (await append(store, await store.load("x"), WHOLE[20:30])).offset == 30

    after_put(store, "x.part", go_on)
    await writer.close(sync=False)
    assert (await store.load("x")).offset == 30


# -- bytes ---------------------------------------------------------------------------------------


async def test_an_object_of_a_late_holder_is_not_taken_for_the_bytes_of_the_next_one(
    opened: Opened,
) -> None:
    """It has the upload's token and size, and other bytes."""
    late, other = opened(), opened()
    writer = await late.open_writer(await created(late, 5), PLAIN, fence=UNFENCED)
    await write_all(writer, b"wrong")
    next_writer = await other.open_writer(await other.load("x"), PLAIN, fence=UNFENCED)
    await write_all(next_writer, b"hello")
    await writer.close(sync=False)
    await next_writer.close(sync=False)
    upload = await finished(other, await other.load("x"))
    assert await content_of(opened(), upload) == b"hello"


async def test_bytes_are_not_acknowledged_over_another_ones_finish(opened: Opened) -> None:
    late, other = opened(), opened()
    await created(late, 5)
    writer = await other.open_writer(await other.load("x"), PLAIN, fence=UNFENCED)
    await write_all(writer, b"hello")
    first = await late.open_writer(await late.load("x"), PLAIN, fence=UNFENCED)
    await write_all(first, b"first")
    await first.close(sync=False, finishing=True)
    await late.finish(
        (await late.load("x")).info._replace(finished_at=5.0), sync=True, fence=UNFENCED
    )
    with pytest.raises(LeaseLost):
        await writer.close(sync=False)
    upload = await other.load("x")
    assert upload.finished
    assert await content_of(other, upload) == b"first"


async def test_a_late_holder_does_not_abort_what_the_next_one_began(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, other = opened(), opened()
    await created(opened(), LENGTH)
    lease = Lease()
    writer = await late.open_writer(await late.load("x"), PLAIN, fence=lease)
    original = late.objects.pending_uploads

    async def slow(key: str) -> list[str]:
        lease.is_lost = True
        await append(other, await other.load("x"), *pieces(WHOLE[: PART + 10]))
        return await original(key)

    monkeypatch.setattr(late.objects, "pending_uploads", slow)
    with suppress(LeaseLost):
        # Whether it fails already here depends on when the part is sent.
        await write_all(writer, *pieces(WHOLE[: PART + 10]))
    with pytest.raises(LeaseLost):
        await writer.close(sync=False)
    found = await opened().load("x")
    assert found.offset == PART + 10
    upload = await append(other, await other.load("x"), *pieces(WHOLE[PART + 10 :]))
    assert await content_of(other, await finished(other, upload)) == WHOLE


def while_listing(
    monkeypatch: pytest.MonkeyPatch, store: S3Store, do: Callable[[], Awaitable[object]]
) -> None:
    """Let something happen before the bucket answers what is pending."""
    original = store.objects.pending_uploads

    async def slow(key: str) -> list[str]:
        await do()
        return await original(key)

    monkeypatch.setattr(store.objects, "pending_uploads", slow)


@pytest.mark.parametrize("is_creator", [False, True])
async def test_a_holder_that_cannot_know_it_is_late_does_not_abort_what_the_next_one_began(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, is_creator: bool
) -> None:
    """Its fence lasts as long as it cannot reach Redis, which has given the lock to the other one.

    It lists what is pending as an earlier holder may have begun something, or as its own request had no response.
    """
    late, other = opened(), opened()
    await created(late if is_creator else opened(), LENGTH)
    writer = await late.open_writer(await late.load("x"), PLAIN, fence=UNFENCED)
    create = late.objects.create_multipart

    async def create_without_response(key: str, properties: Properties) -> NewMultipart:
        return replace(await create(key, properties), may_have_twin=True)

    async def go_on() -> None:
        await append(other, await other.load("x"), *pieces(WHOLE[: PART + 10]))

    monkeypatch.setattr(late.objects, "create_multipart", create_without_response)
    while_listing(monkeypatch, late, go_on)
    with suppress(LeaseLost):
        # Whether it fails already here depends on when the part is sent.
        await write_all(writer, *pieces(WHOLE[: PART + 10]))
    with pytest.raises(LeaseLost):
        await writer.close(sync=False)
    upload = await opened().load("x")
    assert upload.offset == PART + 10
    upload = await append(other, await other.load("x"), *pieces(WHOLE[PART + 10 :]))
    assert await content_of(other, await finished(other, upload)) == WHOLE


async def test_a_finish_that_is_late_does_not_abort_what_the_next_holder_began(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload grows no more for the one that is late, and grows for the other."""
    late, other = opened(), opened()
    await created(opened(), None)
    upload = await append(late, await late.load("x"), WHOLE[:5])

    async def go_on() -> None:
        await append(other, await other.load("x"), *pieces(WHOLE[5 : PART + 10]))

    while_listing(monkeypatch, late, go_on)
    info = upload.info._replace(length=5, finished_at=1.0)
    with pytest.raises(LeaseLost):
        await late.finish(info, sync=True, fence=UNFENCED)
    assert (await opened().load("x")).offset == PART + 10
    await append(other, await other.load("x"), *pieces(WHOLE[PART + 10 :]))
    upload = await other.load("x")
    await other.save(upload.info._replace(length=LENGTH), fence=UNFENCED)
    assert await content_of(other, await finished(other, await other.load("x"))) == WHOLE


async def test_a_claim_of_a_process_that_had_the_upload_before_is_another_record(
    opened: Opened,
) -> None:
    """Two requests of one process, with one of another process in between: the first one must not take it for its own."""
    store, other = opened(), opened()
    await created(store, LENGTH)
    known = store._live["x"]
    await other.open_writer(await other.load("x"), PLAIN, fence=UNFENCED)
    await store.open_writer(await store.load("x"), PLAIN, fence=UNFENCED)
    with pytest.raises(LeaseLost):
        await store.save_record(known, known.record, UNFENCED)


async def test_a_late_completion_takes_no_other_tail(opened: Opened) -> None:
    """The length was declared after the bytes, which another holder has replaced meanwhile."""
    late, other = opened(), opened()
    upload = await append(late, await created(late, None), b"hello")
    await late.save(upload.info._replace(length=5), fence=UNFENCED)
    key = late.layout.tail("x")
    head, _ = await other.objects.read(key, limit=5)
    await other.objects.put(key, b"wrong", head.properties, kind=ObjectKind.RECORD)
    late.tails.drop("x")
    with pytest.raises(LeaseLost):
        await late.sync(await late.load("x"), fence=UNFENCED)


async def test_memory_is_not_made_free_by_the_tail_of_a_request_that_ends(
    opened: Opened,
) -> None:
    """Both would replace the tail, and one of them would be taken for another holder."""
    store = opened()
    upload = await append(store, await created(store, LENGTH), b"a")
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, WHOLE[1:10])

    relieved: list[asyncio.Task[None]] = []

    async def relieve() -> None:
        assert writer.idle_bytes == 0  # type: ignore[attr-defined]
        relieved.append(asyncio.ensure_future(writer.relieve()))  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    before_put(store, ".part", relieve)
    await writer.close(sync=False)
    await asyncio.gather(*relieved)
    assert (await store.load("x")).offset == (await opened().load("x")).offset == 10


async def test_a_refused_body_is_not_stored_to_make_memory_free(opened: Opened) -> None:
    store = opened()
    upload = await append(store, await created(store, 100), b"a")
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, b"refused")
    relief = asyncio.ensure_future(writer.relieve())  # type: ignore[attr-defined]
    await writer.discard()
    await relief
    await writer.close(sync=False)
    assert (await store.load("x")).offset == (await opened().load("x")).offset == 1


async def test_an_object_that_is_stored_again_after_the_removal_does_not_stay(
    opened: Opened, contents: Contents
) -> None:
    """A server repeats a request whose response was lost, and the upload was finished and removed meanwhile."""
    late, other = opened(), opened()
    writer = await late.open_writer(await created(late, 5), PLAIN, fence=UNFENCED)
    await write_all(writer, b"hello")
    upload = await append(other, await other.load("x"), b"hello")
    info = upload.info._replace(finished_at=time.time())
    await other.finish(info, sync=True, fence=UNFENCED)
    await other.remove("x", fence=UNFENCED)
    await writer.close(sync=False)
    assert contents.keys() >= {"x"}
    await swept(other)
    assert contents.keys() == {".tusd-py/gone/x"}


async def test_a_join_that_lost_the_lock_does_not_abort_that_of_the_next_holder(
    opened: Opened,
) -> None:
    """Its process has looked at the final since, as each request for it does."""
    late, other, lease = opened(), opened(), Lease()
    info = UploadInfo("p", LENGTH, is_partial=True, created_at=1.0)
    part = await finished(other, await append(other, await other.create(info), *pieces(WHOLE)))
    final = UploadInfo("f", LENGTH, is_final=True, parts=("p",), created_at=1.0)
    await late.create(final)

    async def go_on() -> None:
        lease.is_lost = True
        await late.load("f")
        with pytest.raises(LeaseLost):
            await late.joiner.join(final, [part], fence=lease)

    before(other, "copy_part", go_on, 1)
    await other.joiner.join(final, [part], fence=UNFENCED)
    assert await content_of(opened(), await finished(other, await other.load("f"))) == WHOLE


async def test_a_join_that_began_in_vain_leaves_nothing(opened: Opened, contents: Contents) -> None:
    """The process that begins anew is killed before it aborts what it found in the record, and another one goes on."""
    first, second, third = opened(), opened(), opened()
    info = UploadInfo("p", LENGTH, is_partial=True, created_at=1.0)
    part = await finished(first, await append(first, await first.create(info), *pieces(WHOLE)))
    final = UploadInfo("f", LENGTH, is_final=True, parts=("p",), created_at=1.0)
    await first.create(final)

    async def fail() -> None:
        raise StoreUnavailable("no response")

    before(first, "copy_part", fail, 1)
    before(second, "abort", fail, 1)
    for each in (first, second):
        with pytest.raises(StorageError):
            await each.joiner.join(final, [part], fence=UNFENCED)
    await third.joiner.join(final, [part], fence=UNFENCED)
    assert await content_of(third, await finished(third, await third.load("f"))) == WHOLE
    assert contents.pending() == set()


# -- ids and places that are given again -------------------------------------------------------


class Successor:
    """An upload that gets the id "x", or its key, from another server while what a removed upload had is freed."""

    def __init__(self, store: S3Store, kind: str) -> None:
        self._store = store
        self._kind = kind
        self._upload: Upload | None = None

    async def begin(self) -> None:
        store, is_small = self._store, self._kind in {"small", "placed small"}
        if self._upload is not None:
            return
        info = UploadInfo("x", 5 if is_small else LENGTH, created_at=2.0)
        if self._kind.startswith("placed"):
            info = info._replace(id="y", location="x")
        self._upload = await store.create(info)
        data = b"hello" if is_small else WHOLE[: PART + 10]
        if self._kind == "tail":
            data = data[:10]
        for piece in pieces(data):
            with suppress(LeaseLost):
                # A tail of the removed upload is in the way at first.
                self._upload = await append(store, self._upload, piece)
                continue
            self._upload = await append(store, await store.load(info.id), piece)

    async def check(self, opened: Opened) -> None:
        """Nothing of it is gone."""
        store, data = opened(), b"hello" if "small" in self._kind else WHOLE
        assert self._upload is not None
        upload = await store.load(self._upload.id)
        assert upload.offset == self._upload.offset > 0
        if upload.offset < len(data):
            upload = await append(store, upload, *pieces(data[upload.offset :]))
        assert await content_of(store, await finished(store, upload)) == data


def before(store: S3Store, method: str, do: Callable[[], Awaitable[object]], nth: int) -> None:
    """Let something happen before the nth request of a kind, from 1."""
    original, count = getattr(store.objects, method), 0

    async def call(*arguments: object, **named: object) -> object:
        nonlocal count
        count += 1
        if count == nth:
            await do()
        return await original(*arguments, **named)

    setattr(store.objects, method, call)


SUCCESSORS = ["small", "parts", "tail", "placed small", "placed parts"]


@pytest.mark.parametrize("kind", SUCCESSORS)
@pytest.mark.parametrize("size", [10, PART + 10])
async def test_a_removal_that_is_late_frees_nothing_of_the_next_upload_with_its_id(
    opened: Opened, kind: str, size: int
) -> None:
    late, successor = opened(), Successor(opened(), kind)
    await append(late, await created(late, LENGTH), *pieces(WHOLE[:size]))
    before(late, "pending_uploads", successor.begin, 1)
    await late.remove("x", fence=UNFENCED)
    await successor.check(opened)


@pytest.mark.parametrize("kind", SUCCESSORS)
@pytest.mark.parametrize(
    ("method", "nth"), [("pending_uploads", 1), ("read", 3), ("head", 1), ("head", 2), ("read", 5)]
)
async def test_a_sweep_frees_nothing_of_the_next_upload_with_the_id_of_a_removed_one(
    opened: Opened, kind: str, method: str, nth: int
) -> None:
    """It has begun to free what came late of the removed one."""
    store, successor = opened(), Successor(opened(), kind)
    writer = await store.open_writer(await created(store, LENGTH), PLAIN, fence=UNFENCED)
    await write_all(writer, WHOLE[:10])
    await store.remove("x", fence=UNFENCED)
    await writer.close(sync=False)
    await store.objects.create_multipart(store.layout.key("x"), Properties())
    before(store, method, successor.begin, nth)
    await swept(store)
    await successor.check(opened)


async def test_a_finish_that_is_late_removes_no_tail_of_the_next_upload_with_its_id(
    opened: Opened,
) -> None:
    late, other = opened(), opened()
    upload = await append(late, await created(late, LENGTH), *pieces(WHOLE[: PART + 10]))
    upload = await append(late, upload, *pieces(WHOLE[PART + 10 :]))
    successor = Successor(other, "tail")

    async def go_on() -> None:
        await other.remove("x", fence=UNFENCED)
        await successor.begin()

    after_put(late, "x.info", go_on)
    await late.finish(upload.info._replace(finished_at=1.0), sync=True, fence=UNFENCED)
    await successor.check(opened)


async def test_a_place_that_was_given_again_stays_taken(opened: Opened) -> None:
    """To an upload that has the id of the removed one, too."""
    late, other = opened(), opened()
    await append(late, await late.create(placed("x")), b"hel")

    async def go_on() -> None:
        await append(other, await other.create(placed("x")), b"hello")

    # The first one looks whether it is finished.
    before(late, "head", go_on, 2)
    await late.remove("x", fence=UNFENCED)
    assert await other._places.holder("study/1.dcm") == "x"
    upload = await finished(other, await other.load("x"))
    assert await content_of(opened(), upload) == b"hello"


# -- places --------------------------------------------------------------------------------------


def placed(upload_id: str) -> UploadInfo:
    return UploadInfo(upload_id, 5, location="study/1.dcm", created_at=1.0)


async def test_two_creations_at_a_time_do_not_get_one_place(opened: Opened) -> None:
    """The first one stands still between its claim and its record."""
    late, other = opened(), opened()
    before_put(late, "x.info", lambda: other.create(placed("y")))
    with pytest.raises(UploadExists):
        await late.create(placed("x"))
    with pytest.raises(StorageError):
        await opened().load("x")
    upload = await finished(other, await append(other, await other.load("y"), b"hello"))
    assert await content_of(opened(), upload) == b"hello"


async def test_a_creation_takes_no_place_from_one_that_is_under_way(opened: Opened) -> None:
    """It looks for the other's record before that is there, and replaces its claim after that."""
    first, second = opened(), opened()
    original = second.objects.put
    await first._places.take("study/1.dcm", "x")

    async def put(key: str, *arguments: object, **named: object) -> str:
        if named.get("if_match"):
            second.objects.put = original  # type: ignore[method-assign]
            await first.create(placed("x"))
        return await original(key, *arguments, **named)  # type: ignore[arg-type]

    second.objects.put = put  # type: ignore[method-assign]
    with pytest.raises(UploadExists):
        await second.create(placed("y"))
    assert await second._places.holder("study/1.dcm") == "x"
    upload = await finished(first, await append(first, await first.load("x"), b"hello"))
    assert await content_of(opened(), upload) == b"hello"


async def test_an_id_is_not_given_that_becomes_the_place_of_another_upload(
    opened: Opened,
) -> None:
    late, other = opened(), opened()
    before_put(
        late, "x.info", lambda: other.create(UploadInfo("y", 5, location="x", created_at=1.0))
    )
    with pytest.raises(UploadExists):
        await created(late, 5)
    upload = await finished(other, await append(other, await other.load("y"), b"hello"))
    assert await content_of(opened(), upload) == b"hello"


async def test_an_upload_does_not_replace_what_came_to_its_place_since(opened: Opened) -> None:
    store = opened()
    upload = await store.create(placed("x"))
    key = store.layout.data(upload.info)
    await store.objects.put(key, b"other", Properties(), kind=ObjectKind.DATA)
    with pytest.raises(StorageError, match="this server did not store"):
        await append(store, upload, b"hello")
    assert (await store.objects.read(key, limit=10))[1] == b"other"


# -- stores --------------------------------------------------------------------------------------


async def test_a_conflict_of_conditional_requests_is_no_refusal(
    seaweedfs: S3Server, prefix: str, opened: Opened
) -> None:
    """AWS answers 409 while another request for the object is under way, whatever comes of that."""
    conflicts = 0

    def conflict(_proxy: RulesProxy, exchange: Exchange) -> Answer | None:
        nonlocal conflicts
        if exchange.operation != "PutObject" or conflicts >= 3:
            return None
        conflicts += 1
        return error(409, "ConditionalRequestConflict")

    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(RulesProxy(seaweedfs.address, conflict))
        store = Opened(stack, proxy.endpoint, prefix)()
        upload = await append(store, await created(store, 50), b"hello")
        assert conflicts == 3
        assert upload.offset == 5


async def test_ranges_are_not_copied_out_of_objects_that_aws_copies_none_of(
    seaweedfs: S3Server, prefix: str, opened: Opened
) -> None:
    def no_small_sources(_proxy: RulesProxy, exchange: Exchange) -> Answer | None:
        if (
            exchange.operation == "UploadPartCopy"
            and "small" in exchange.headers["x-amz-copy-source"]
        ):
            return error(
                400,
                "InvalidRequest",
                "The copy source is not supported as a byte-range copy source",
            )
        return None

    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(RulesProxy(seaweedfs.address, no_small_sources))
        store = Opened(stack, proxy.endpoint, prefix)()
        parts = []
        for name, data in (("large", WHOLE[: 2 * PART]), ("small", WHOLE[2 * PART :])):
            info = UploadInfo(name, len(data), is_partial=True, created_at=1.0)
            parts.append(
                await finished(store, await append(store, await store.create(info), *pieces(data)))
            )
        final = UploadInfo("f", LENGTH, is_final=True, parts=("large", "small"), created_at=1.0)
        await store.create(final)
        await store.joiner.join(final, parts, fence=UNFENCED)
        assert await content_of(store, await finished(store, await store.load("f"))) == WHOLE
        assert proxy.requests["UploadPartCopy"] == 2
