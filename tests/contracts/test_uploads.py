"""The contract of every store: the life of an upload, from its record to its tombstone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.contracts.places import Place
from tests.support.store import PLAIN, append, content_of, write_all
from tusd_py.locks.base import UNFENCED, Fence, HeldFence, LeaseLost
from tusd_py.storage.base import (
    RemovalEvent,
    StorageError,
    Store,
    Upload,
    UploadExists,
    UploadGone,
    UploadInfo,
    UploadNotFound,
)

CREATED = 1_700_000_000.25
FINISHED = 1_732_690_123.654321
IDS = ("0a1b", "2026/11/scan-1.dcm", "a.000001-b", "ä" * 100, "a" * 200)
HOUR = 3600.0


def new(upload_id: str = "x", length: int | None = 5, **fields: object) -> UploadInfo:
    return UploadInfo(upload_id, length, created_at=CREATED)._replace(**fields)  # type: ignore[arg-type]


def lost() -> HeldFence:
    return HeldFence(lambda: False)


async def finished(store: Store, info: UploadInfo, data: bytes) -> Upload:
    upload = await append(store, await store.create(info), data)
    await store.finish(upload.info._replace(finished_at=FINISHED), sync=True, fence=UNFENCED)
    return await store.load(info.id)


# -- records -------------------------------------------------------------------------------------

WRITTEN = set(UploadInfo._fields) - {"location", "foreign", "counted"}
RECORDS = {
    "plain": new(),
    "deferred": new(length=None),
    "empty": new(length=0),
    "large": new(length=2**53),
    "metadata": new(
        metadata={"name": "scan-ä.dcm".encode(), "empty": b"", "raw": b"\0\1\xff"},
        metadata_header="name c2Nhbi3DpC5kY20=,empty,raw AAH/",
    ),
    "part": new(is_partial=True, concat_header="partial"),
    "final": new(length=None, is_final=True, parts=("a", "b/c", "a"), concat_header="final;a b a"),
    "resumable": new(awaits_completion=True, repr_digest="sha-256=:AA==:", wanted_digest="sha256"),
    "limits": new(owner="https://id.example/ä|1", max_size=7, expire_after=0.0, retain=86_400.5),
}


@pytest.mark.parametrize("kind", RECORDS)
async def test_a_record_is_read_as_it_was_written(store: Store, other: Store, kind: str) -> None:
    info = RECORDS[kind]
    created = await store.create(info)
    for upload in (created, await store.load("x"), await other.load("x")):
        assert upload.info == created.info
        assert (upload.offset, upload.finished, upload.is_cut) == (0, False, False)
        assert upload.joined is not info.is_final
        # The store may add what it needs to find the bytes.
        for name in WRITTEN:
            assert getattr(upload.info, name) == getattr(info, name), name


@pytest.mark.parametrize("upload_id", IDS)
async def test_any_id_names_an_upload(store: Store, other: Store, upload_id: str) -> None:
    with pytest.raises(UploadNotFound):
        await store.load(upload_id)
    await finished(store, new(upload_id), b"hello")
    upload = await other.load(upload_id)
    assert await content_of(other, upload) == b"hello"
    assert [each async for each in other.ids()] == [upload_id]
    await other.remove(upload_id, fence=UNFENCED)
    with pytest.raises(UploadGone):
        await store.load(upload_id)


async def test_an_id_is_given_once(store: Store, other: Store) -> None:
    upload = await append(store, await store.create(new()), b"hel")
    with pytest.raises(UploadExists):
        await other.create(new(length=7))
    assert (await store.load("x")).info == upload.info
    assert (await append(other, await other.load("x"), b"lo")).offset == 5


async def test_a_location_is_given_once(store: Store) -> None:
    upload = await finished(store, new("a", location="study/scan"), b"hello")
    with pytest.raises(UploadExists):
        await store.create(new("b", location="study/scan"))
    with pytest.raises(UploadNotFound):
        await store.load("b")
    assert await content_of(store, upload) == b"hello"


async def test_a_record_is_replaced_and_survives(store: Store, other: Store) -> None:
    upload = await append(store, await store.create(new(length=None)), b"hel")
    await store.save(upload.info._replace(length=5), fence=UNFENCED)
    found = await other.load("x")
    assert (found.length, found.offset) == (5, 3)
    assert found.info == upload.info._replace(length=5)


async def test_a_finish_is_recorded_to_the_microsecond_and_can_be_repeated(
    store: Store, other: Store
) -> None:
    upload = await finished(store, new(), b"hello")
    assert upload.info.finished_at == FINISHED
    await other.finish(upload.info, sync=True, fence=UNFENCED)
    assert (await other.load("x")).info == upload.info
    # As where the event of the finish could not be recorded.
    await store.save(upload.info._replace(finished_at=None), fence=UNFENCED)
    assert not (await other.load("x")).finished


async def test_a_durable_upload_is_what_it_was(store: Store) -> None:
    upload = await append(store, await store.create(new()), b"hel")
    await store.sync(upload, fence=UNFENCED)
    assert await store.load("x") == upload


# -- without the lock ----------------------------------------------------------------------------


async def write(store: Store, upload: Upload, fence: Fence) -> None:
    writer = await store.open_writer(upload, PLAIN, fence=fence)
    try:
        await write_all(writer, b"x")
    finally:
        await writer.close(sync=False)


async def discard(store: Store, upload: Upload, fence: Fence) -> None:
    held = True
    writer = await store.open_writer(upload, PLAIN, fence=lambda: HeldFence(lambda: held))
    held = False
    try:
        await writer.discard()
    finally:
        writer.abandon()
        await writer.close(sync=False)


CHANGES: dict[str, Callable[[Store, Upload, Fence], Awaitable[object]]] = {
    "create": lambda store, _, fence: store.create(new("y"), fence=fence),
    "write": write,
    "discard": discard,
    "save": lambda store, upload, fence: store.save(upload.info._replace(length=9), fence=fence),
    "finish": lambda store, upload, fence: store.finish(
        upload.info._replace(finished_at=FINISHED), sync=False, fence=fence
    ),
    "finish durably": lambda store, upload, fence: store.finish(
        upload.info._replace(finished_at=FINISHED), sync=True, fence=fence
    ),
    "remove": lambda store, upload, fence: store.remove(upload.id, fence=fence),
    "keep": lambda store, upload, fence: store.outbox.keep(upload.id, "e0", b"{}", fence=fence),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_without_the_lock_nothing_changes(store: Store, place: Place, change: str) -> None:
    upload = await append(store, await store.create(new()), b"hello")
    before = place.contents()
    with pytest.raises(LeaseLost):
        await CHANGES[change](store, upload, lost)
    assert place.contents() == before


async def test_of_many_only_those_are_removed_whose_lock_is_held(store: Store) -> None:
    uploads = [await finished(store, new(each), b"hello") for each in ("a", "b", "c")]
    fences: dict[str, Fence] = {"a": UNFENCED, "b": lost, "c": UNFENCED}
    assert await store.remove_each(uploads, fences=fences) == [True, False, True]
    found = await store.load_each(["a", "b", "c", "d"])
    assert [type(each) for each in found] == [UploadGone, Upload, UploadGone, UploadNotFound]


# -- removal -------------------------------------------------------------------------------------


async def test_what_was_removed_is_gone_and_stays_so(store: Store, other: Store) -> None:
    upload = await finished(store, new(), b"hello")
    await other.remove("x", fence=UNFENCED)
    await store.remove("x", fence=UNFENCED)
    with pytest.raises(UploadNotFound):
        await store.save(upload.info, fence=UNFENCED)
    with pytest.raises(StorageError):
        await store.finish(upload.info, sync=True, fence=UNFENCED)
    with pytest.raises(UploadGone):
        await store.open_reader(upload)
    for each in (store, other):
        with pytest.raises(UploadGone):
            await each.load("x")
        assert [upload_id async for upload_id in each.ids()] == []


async def test_nothing_is_left_of_an_upload_that_no_client_was_told_of(
    store: Store, place: Place
) -> None:
    before = place.contents()
    upload = await append(store, await store.create(new()), b"hello")
    await store.remove(upload.id, fence=UNFENCED, keep_tombstone=False)
    assert place.contents() == before
    with pytest.raises(UploadNotFound):
        await store.load("x")


async def test_an_id_can_be_used_again_after_a_removal(store: Store) -> None:
    await finished(store, new(), b"hello")
    await store.remove("x", fence=UNFENCED)
    upload = await finished(store, new(length=7), b"another")
    assert (await store.load("x")).info == upload.info
    assert await content_of(store, upload) == b"another"


async def test_tombstones_go_when_they_are_old(store: Store, place: Place) -> None:
    before = place.contents()
    await finished(store, new("2026/x"), b"hello")
    await store.remove("2026/x", fence=UNFENCED)
    assert await store.tidy(tombstone_ttl=HOUR) == 0
    assert await store.tidy(tombstone_ttl=-HOUR) == 1
    with pytest.raises(UploadNotFound):
        await store.load("2026/x")
    assert place.contents() == before


async def test_tidying_up_takes_nothing_that_counts(store: Store, other: Store) -> None:
    upload = await append(store, await store.create(new()), b"hel")
    done = await finished(store, new("y"), b"hello")
    await store.outbox.keep("x", "e0", b"{}", fence=UNFENCED)
    await other.tidy(tombstone_ttl=-HOUR)
    assert await other.load("x") == upload
    assert await other.load("y") == done
    assert len(await other.outbox.of("x")) == 1


async def test_the_event_of_a_removal_is_kept_until_it_is_told(store: Store, other: Store) -> None:
    upload = await finished(
        store, new(owner="me", metadata={"a": b"b"}, metadata_header="a Yg=="), b"hello"
    )
    await store.remove("x", fence=UNFENCED, unpublished=RemovalEvent("e0", 5))
    await store.tidy(tombstone_ttl=HOUR)
    [removal] = await other.unpublished_removals()
    assert (removal.event, removal.keep_tombstone) == (RemovalEvent("e0", 5), True)
    assert removal.upload.info == upload.info
    assert await other.finish_removal(removal, fence=UNFENCED)
    await other.forget_removal(removal, fence=UNFENCED)
    assert await store.unpublished_removals() == []
    assert not await store.finish_removal(removal, fence=UNFENCED)
    with pytest.raises(UploadGone):
        await store.load("x")


async def test_events_of_many_removals_are_kept(store: Store) -> None:
    uploads = [await finished(store, new(each), b"hello") for each in ("a", "b")]
    fences: dict[str, Fence] = {"a": UNFENCED, "b": lost}
    events = {"a": RemovalEvent("e0", 5), "b": RemovalEvent("e1", 5)}
    await store.remove_each(uploads, fences=fences, unpublished=events)
    assert [each.event for each in await store.unpublished_removals()] == [events["a"]]


# -- sweeps --------------------------------------------------------------------------------------


async def test_all_uploads_are_found(store: Store, other: Store) -> None:
    names = {f"{number % 7}/{number}" for number in range(100)} | {"a", "10", "ä"}
    for name in names:
        await store.create(new(name))
    await store.outbox.keep("a", "e0", b"{}", fence=UNFENCED)
    found = [each async for each in other.ids()]
    assert len(found) == len(names)
    assert set(found) == names


async def test_nothing_is_left_to_discard_of_what_does_not_exist(store: Store) -> None:
    assert not await store.discard_fragment("x", fence=UNFENCED)
    await store.create(new())
    assert not await store.discard_fragment("x", fence=UNFENCED)
    assert (await store.load("x")).offset == 0


async def test_times_of_sweeps_are_kept(store: Store, other: Store) -> None:
    times = await store.sweep_marks.read()
    assert (times.ended_at, times.held_since) == (None, None)
    await store.sweep_marks.record_hold(CREATED)
    assert (await other.sweep_marks.read()).held_since == CREATED
    await store.sweep_marks.record_end(CREATED + 1)
    times = await other.sweep_marks.read()
    assert (times.ended_at, times.held_since) == (CREATED + 1, None)


async def test_a_store_tells_whether_it_can_be_written_to(store: Store) -> None:
    await store.check()
    free = await store.free_space()
    assert free is None or free > 0
