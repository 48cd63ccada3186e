"""The contract of every store: bytes are written, counted and read back, however a request ends."""

from __future__ import annotations

import random

import pytest

from tests.contracts.conftest import OpenStore
from tests.support.store import PLAIN, VERIFIED, append, content_of, sha256, write_all
from tusd_py.locks.base import UNFENCED, HeldFence, LeaseLost
from tusd_py.protocol.tus import Content
from tusd_py.storage.base import StorageError, Store, Upload, UploadGone, UploadInfo

SIZES = (0, 1, 300_000, 3_000_001)
PIECE = 64 * 1024


def data(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def pieces(whole: bytes) -> list[bytes]:
    return [whole[at : at + PIECE] for at in range(0, len(whole), PIECE)]


async def created(store: Store, length: int | None) -> Upload:
    return await store.create(UploadInfo("x", length, created_at=1_700_000_000.0))


async def finish(store: Store, upload: Upload) -> Upload:
    await store.finish(upload.info._replace(finished_at=1.0), sync=True, fence=UNFENCED)
    return await store.load(upload.id)


# -- plain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
async def test_bytes_are_read_as_they_were_written(store: Store, other: Store, size: int) -> None:
    whole = data(size)
    upload = await append(store, await created(store, size), *pieces(whole))
    assert upload.offset == size
    assert upload.complete
    upload = await finish(store, upload)
    assert (await other.load("x")).offset == size
    assert await content_of(other, upload) == whole


@pytest.mark.parametrize("sync", [False, True])
async def test_several_requests_add_to_one_upload(store: Store, other: Store, sync: bool) -> None:
    whole = data(1_000_003)
    upload = await created(store, None)
    for each in (whole[:5], whole[5:700_000], b"", whole[700_000:]):
        writer = await store.open_writer(upload, Content(len(each), None, False), fence=UNFENCED)
        assert writer.offset == upload.offset
        await write_all(writer, each)
        assert writer.offset == upload.offset + len(each)
        await writer.close(sync=sync)
        upload = await other.load("x")
        assert upload.offset == writer.offset
        store, other = other, store
    await store.save(upload.info._replace(length=len(whole)), fence=UNFENCED)
    assert await content_of(store, await finish(store, await store.load("x"))) == whole


@pytest.mark.parametrize("content", [PLAIN, VERIFIED], ids=["plain", "verified"])
async def test_memory_may_be_used_again_at_once(verifying: Store, content: Content) -> None:
    """The receive buffer of a connection is filled anew while a slow store still writes."""
    whole = data(2_500_000)
    writer = await verifying.open_writer(
        await created(verifying, len(whole)), content, fence=UNFENCED
    )
    memory = bytearray(PIECE)
    for each in pieces(whole):
        view = writer.get_buffer()
        if view is None or len(view) < len(each):
            view = memoryview(memory)
        view[: len(each)] = each
        rest = writer.write(view[: len(each)])
        memory[:] = bytes(PIECE)
        if rest is not None:
            await rest
    if content.verified:
        assert await writer.verify(sha256(whole))
    await writer.close(sync=False)
    upload = await finish(verifying, await verifying.load("x"))
    assert await content_of(verifying, upload) == whole


async def test_what_is_discarded_does_not_count(store: Store, other: Store) -> None:
    before = data(100_000)
    upload = await append(store, await created(store, 200_000), before)
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, *pieces(data(3_000_000)))
    await writer.discard()
    assert writer.offset == upload.offset
    await writer.close(sync=False)
    upload = await other.load("x")
    assert upload.offset == 100_000
    upload = await finish(other, await append(other, upload, bytes(100_000)))
    assert await content_of(other, upload) == before + bytes(100_000)


@pytest.mark.parametrize("size", [10, 3_000_001])
async def test_after_a_kill_the_offset_is_true(store: Store, other: Store, size: int) -> None:
    whole = data(size)
    upload = await append(store, await created(store, size), whole[:5])
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, *pieces(whole[5 : size - 3]))
    # Nobody closes it.
    found = await other.load("x")
    assert 5 <= found.offset <= size - 3
    found = await append(
        other, await other.recover(found, fence=UNFENCED), *pieces(whole[found.offset :])
    )
    assert await content_of(other, await finish(other, found)) == whole
    writer.abandon()
    await writer.close(sync=False)
    assert await content_of(other, await other.load("x")) == whole


@pytest.mark.parametrize("finishes", [True, False])
@pytest.mark.parametrize("size", [1, 300_000])
async def test_the_last_bytes_count_by_the_finish_or_without_it(
    store: Store, other: Store, size: int, finishes: bool
) -> None:
    whole = data(size)
    upload = await created(store, size)
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, *pieces(whole))
    await writer.close(sync=False, finishing=True)
    assert writer.offset == size
    if finishes:
        info = upload.info._replace(finished_at=2.5)
        await store.finish(info, sync=True, fence=UNFENCED)
    await store.settle("x", fence=UNFENCED)
    for each in (store, other):
        found = await each.load("x")
        assert (found.offset, found.info.finished_at) == (size, 2.5 if finishes else None)
    assert await content_of(other, await finish(other, await other.load("x"))) == whole


async def test_an_upload_that_is_removed_before_its_finish_is_gone(
    store: Store, other: Store
) -> None:
    upload = await created(store, 5)
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, b"hello")
    await writer.close(sync=False, finishing=True)
    await store.remove("x", fence=UNFENCED)
    await store.settle("x", fence=UNFENCED)
    with pytest.raises(UploadGone):
        await other.load("x")
    assert [each async for each in other.ids()] == []


async def test_nothing_is_written_once_the_lock_is_lost(store: Store, other: Store) -> None:
    whole = data(4_000_000)
    is_held = True
    upload = await created(store, len(whole))
    writer = await store.open_writer(upload, PLAIN, fence=lambda: HeldFence(lambda: is_held))
    await write_all(writer, *pieces(whole[:2_000_000]))
    is_held = False
    newcomer = await append(other, await other.load("x"), b"")
    with pytest.raises(LeaseLost):
        await write_all(writer, *pieces(bytes(2_000_000)))
    writer.abandon()
    await writer.close(sync=False)
    found = await other.load("x")
    assert found.offset == newcomer.offset
    upload = await append(other, found, *pieces(whole[found.offset :]))
    assert await content_of(other, await finish(other, upload)) == whole


# -- verified ------------------------------------------------------------------------------------


@pytest.mark.parametrize("announced", [False, True], ids=["trailer", "header"])
@pytest.mark.parametrize("size", SIZES[1:])
async def test_a_verified_chunk_counts_if_it_is_right(
    verifying: Store, other: Store, size: int, announced: bool
) -> None:
    chunk = data(size)
    upload = await append(verifying, await created(verifying, size + 5), b"hello")
    content = Content(size, sha256(chunk), False) if announced else VERIFIED
    writer = await verifying.open_writer(upload, content, fence=UNFENCED)
    await write_all(writer, *pieces(chunk))
    assert (await other.load("x")).offset == 5
    assert await writer.verify(sha256(chunk))
    await writer.close(sync=True)
    upload = await other.load("x")
    assert not upload.is_cut
    assert await content_of(other, await finish(other, upload)) == b"hello" + chunk


@pytest.mark.parametrize("announced", [False, True], ids=["trailer", "header"])
@pytest.mark.parametrize("size", SIZES[1:])
async def test_a_verified_chunk_leaves_nothing_if_it_is_wrong(
    verifying: Store, other: Store, size: int, announced: bool
) -> None:
    chunk = data(size)
    expected = sha256(b"something else")
    upload = await append(verifying, await created(verifying, size + 5), b"hello")
    content = Content(size, expected, False) if announced else VERIFIED
    writer = await verifying.open_writer(upload, content, fence=UNFENCED)
    await write_all(writer, *pieces(chunk))
    assert not await writer.verify(expected)
    await writer.discard()
    await writer.close(sync=False)
    upload = await other.load("x")
    assert (upload.offset, upload.is_cut) == (5, False)
    upload = await append(other, upload, *pieces(chunk))
    assert await content_of(other, await finish(other, upload)) == b"hello" + chunk


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("verified", [False, True], ids=["before", "after"])
async def test_a_verified_chunk_whose_request_was_killed_does_not_count(
    verifying: Store, open_store: OpenStore, size: int, verified: bool
) -> None:
    chunk = data(size)
    upload = await append(verifying, await created(verifying, size + 5), b"hello")
    writer = await verifying.open_writer(upload, VERIFIED, fence=UNFENCED)
    await write_all(writer, *pieces(chunk))
    if verified:
        assert await writer.verify(sha256(chunk))
    writer.abandon()
    await writer.close(sync=False)
    other = await open_store()
    upload = await other.load("x")
    assert upload.offset == 5
    upload = await other.recover(upload, fence=UNFENCED)
    assert not upload.is_cut
    upload = await append(other, upload, *pieces(chunk))
    assert await content_of(other, await finish(other, upload)) == b"hello" + chunk


async def test_what_is_cut_off_stays_while_another_holder_has_the_lock(verifying: Store) -> None:
    upload = await append(verifying, await created(verifying, 50), b"hello")
    writer = await verifying.open_writer(upload, VERIFIED, fence=UNFENCED)
    await write_all(writer, b"never verified")
    writer.abandon()
    await writer.close(sync=False)
    found = await verifying.load("x")
    if found.is_cut:
        with pytest.raises(LeaseLost):
            await verifying.recover(found, fence=lambda: HeldFence(lambda: False))
    assert await verifying.load("x") == found
    assert (await verifying.recover(found, fence=UNFENCED)).offset == 5


async def test_a_right_chunk_does_not_count_for_one_that_lost_its_lock(
    verifying: Store, other: Store
) -> None:
    chunk, held = data(300_000), [True]
    upload = await append(verifying, await created(verifying, 300_005), b"hello")
    writer = await verifying.open_writer(upload, VERIFIED, fence=lambda: HeldFence(lambda: held[0]))
    await write_all(writer, *pieces(chunk))
    assert await writer.verify(sha256(chunk))
    held[0] = False
    with pytest.raises(LeaseLost):
        await writer.close(sync=False)
    assert (await other.load("x")).offset == 5


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "count"), [(0, 0), (0, 1), (0, 700_001), (3, 600_000), (700_000, 1)]
)
@pytest.mark.parametrize("is_finished", [False, True])
async def test_any_range_can_be_read(
    store: Store, start: int, count: int, is_finished: bool
) -> None:
    whole = data(700_001)
    upload = await append(store, await created(store, 700_001), whole)
    if is_finished:
        upload = await finish(store, upload)
    reader = await store.open_reader(upload)
    found = [piece async for piece in reader.stream(start, count)]
    assert all(found)
    assert max(map(len, found), default=0) <= 1024 * 1024
    assert b"".join(found) == whole[start : start + count]
    reader.close()


async def test_fewer_bytes_than_promised_are_an_error(store: Store) -> None:
    upload = await finish(store, await append(store, await created(store, 5), b"hello"))
    reader = await store.open_reader(upload)
    with pytest.raises(StorageError):
        _ = [piece async for piece in reader.stream(3, 3)]
    reader.close()
