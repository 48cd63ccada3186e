"""The store in a bucket, where parts come into play: what counts, what is sent, what happens when a request fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.s3.conftest import Opened
from tests.s3.proxies import Fault, FaultProxy, RulesProxy, equal_parts
from tests.s3.servers import ENVIRONMENT, S3Server
from tests.support.store import PLAIN, VERIFIED, append, content_of, sha256, write_all
from tests.support.waiting import wait_until
from tusd_py.locks.base import UNFENCED, HeldFence, LeaseLost
from tusd_py.protocol.metadata import serialize
from tusd_py.protocol.tus import Content
from tusd_py.storage.base import (
    StorageError,
    StorageUnavailable,
    Store,
    Upload,
    UploadInfo,
    UploadNotFound,
)
from tusd_py.storage.s3 import reader as s3_reader
from tusd_py.storage.s3.object_store import MIN_PART_BYTES, ObjectKind, Properties
from tusd_py.storage.s3.spool import Spool
from tusd_py.storage.s3.store import S3Store
from tusd_py.storage.s3.tails import Tails
from tusd_py.storage.s3.writer import S3Writer

PART = MIN_PART_BYTES
LENGTH = 2 * PART + 1000
WHOLE = random.Random(1).randbytes(LENGTH)
PIECE = 256 * 1024


def pieces(data: bytes) -> list[bytes]:
    return [data[at : at + PIECE] for at in range(0, len(data), PIECE)]


@pytest.fixture
def proxy(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with FaultProxy(seaweedfs.address) as proxy:
        yield proxy
        assert proxy.pending == 0, "a planned fault never happened"


@pytest.fixture
async def opened(proxy: FaultProxy, prefix: str) -> AsyncIterator[Opened]:
    async with AsyncExitStack() as stack:
        yield Opened(stack, proxy.endpoint, prefix)


async def created(store: Store, length: int | None, upload_id: str = "x") -> Upload:
    return await store.create(UploadInfo(upload_id, length, created_at=1_700_000_000.0))


async def finished(store: Store, upload: Upload) -> Upload:
    await store.finish(upload.info._replace(finished_at=1.0), sync=True, fence=UNFENCED)
    return await store.load(upload.id)


async def filled(store: Store, upload: Upload, data: bytes) -> Upload:
    """Append the last bytes of an upload as a request does that finishes it."""
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, data)
    await writer.close(sync=False, finishing=True)
    return upload._replace(offset=writer.offset)


def lost_fence() -> HeldFence:
    return HeldFence(lambda: False)


async def assert_whole(store: Store, upload: Upload) -> None:
    assert upload.offset == LENGTH
    assert await content_of(store, await finished(store, upload)) == WHOLE


# -- requests ------------------------------------------------------------------------------------


async def test_a_small_upload_is_one_object_and_its_record(
    opened: Opened, proxy: FaultProxy
) -> None:
    store, other = opened(), opened()
    upload = await filled(store, await created(store, 5), b"hello")
    await store.finish(upload.info._replace(finished_at=1.5), sync=True, fence=UNFENCED)
    await store.settle("x", fence=UNFENCED)
    # Two looks at a key that a hook chose: for another upload that was placed there, for an object of somebody else.
    assert proxy.requests == {"PutObject": 2, "GetObject": 1, "HeadObject": 1}
    assert await opened.keys() == ["x", "x.info"]
    for each in (store, other):
        found = await each.load("x")
        assert (found.offset, found.info.finished_at) == (5, 1.5)
        assert await content_of(each, found) == b"hello"


async def test_an_upload_without_bytes_is_one_object_and_its_record(
    opened: Opened, proxy: FaultProxy
) -> None:
    store, other = opened(), opened()
    await finished(store, await created(store, 0))
    assert proxy.requests["PutObject"] == 2
    assert (await other.load("x")).finished


async def test_what_was_left_to_a_finish_that_did_not_come_counts_without_it(
    opened: Opened,
) -> None:
    store, other = opened(), opened()
    await filled(store, await created(store, 5), b"hello")
    assert (await other.load("x")).offset == 0
    assert store.spool.used == 5
    await store.settle("x", fence=UNFENCED)
    assert store.spool.used == 0
    found = await other.load("x")
    assert (found.offset, found.finished) == (5, False)
    assert await content_of(other, await finished(other, found)) == b"hello"


async def test_what_was_left_to_a_finish_does_not_count_once_the_lock_is_lost(
    opened: Opened,
) -> None:
    store, other = opened(), opened()
    await filled(store, await created(store, 5), b"hello")
    with pytest.raises(LeaseLost):
        await store.settle("x", fence=lost_fence)
    assert (await other.load("x")).offset == 0
    assert store.spool.used == 0
    await store.settle("x", fence=UNFENCED)
    assert await opened.keys() == ["x.info"]


async def test_a_small_upload_by_several_requests_leaves_no_tail(opened: Opened) -> None:
    store, other = opened(), opened()
    upload = await append(store, await created(store, 10), b"hello")
    await finished(store, await filled(store, upload, b"world"))
    assert await opened.keys() == ["x", "x.info"]
    assert await content_of(other, await other.load("x")) == b"helloworld"


@pytest.mark.parametrize("size", [1000, PART + 10])
async def test_a_small_chunk_with_a_checksum_needs_no_file(
    opened: Opened, tmp_path: Path, size: int
) -> None:
    store, other = opened(spool_directory=str(tmp_path / "none")), opened()
    upload = await created(store, LENGTH)
    writer = await store.open_writer(upload, VERIFIED, fence=UNFENCED)
    if size > PART:
        with pytest.raises(StorageError, match="spool directory"):
            await write_all(writer, *pieces(WHOLE[:size]))
        await writer.discard()
    else:
        await write_all(writer, *pieces(WHOLE[:size]))
        assert store.spool.used == size
        assert await writer.verify(sha256(WHOLE[:size]))
    await writer.close(sync=False)
    assert (await other.load("x")).offset == (0 if size > PART else size)
    # What is left is the tail.
    assert store.spool.used == (0 if size > PART else size)


async def test_a_chunk_with_a_checksum_goes_from_memory_to_a_file(opened: Opened) -> None:
    store, other = opened(), opened()
    upload = await append(store, await created(store, LENGTH), *pieces(WHOLE[:10]), content=PLAIN)
    writer = await store.open_writer(upload, VERIFIED, fence=UNFENCED)
    await write_all(writer, *pieces(WHOLE[10:]))
    assert await writer.verify(sha256(WHOLE[10:]))
    await writer.close(sync=False)
    await assert_whole(other, await other.load("x"))
    assert store.spool.used == 0


async def test_a_request_of_the_same_process_reads_no_tail_back(
    opened: Opened, proxy: FaultProxy
) -> None:
    store, other = opened(), opened()
    upload = await append(store, await created(store, LENGTH), WHOLE[:1000])
    for at in (1000, 2000, 3000):
        proxy.requests.clear()
        upload = await append(store, upload, WHOLE[at : at + 1000])
        # The load of its record, and the tail.
        assert proxy.requests == {"GetObject": 1, "PutObject": 1}
    assert store.spool.used == 4000
    upload = await append(other, await other.load("x"), WHOLE[4000:5000])
    # Another process has replaced the tail: what is in memory is not used any more.
    upload = await append(store, await store.load("x"), *pieces(WHOLE[5000:]))
    await assert_whole(store, upload)
    assert store.spool.used == 0


async def test_tails_in_memory_are_let_go_of_before_anybody_waits(opened: Opened) -> None:
    store = opened(spool_bytes=40_000)
    uploads = [
        await append(store, await created(store, LENGTH, f"x{n}"), WHOLE[:4000]) for n in range(4)
    ]
    # A quarter of the spool is theirs.
    assert store.spool.used == 8000
    writer = await store.open_writer(uploads[0], PLAIN, fence=UNFENCED)
    await write_all(writer, WHOLE[4000:5000])
    assert store.spool.used == 8000 + 5000
    await write_all(writer, WHOLE[5000:39_000])
    assert store.spool.used == 39_000
    await writer.close(sync=False)
    assert (await store.load("x0")).offset == 39_000
    for upload in uploads[1:]:
        assert (await append(store, upload, WHOLE[4000:4010])).offset == 4010


async def test_tails_that_nobody_goes_on_with_are_let_go_of(opened: Opened) -> None:
    store = opened()
    store.tails = Tails(store.spool, seconds=0.2)
    empty = await created(store, LENGTH, "a")
    writer = await store.open_writer(empty, PLAIN, fence=UNFENCED)
    await write_all(writer, WHOLE[:4000])
    await writer.close(sync=False)
    # At once: it is let go of soon.
    assert store.spool.used == 4000
    assert store.tails.take(empty.id, "another", 4000) is None
    first = await store.load(empty.id)
    await asyncio.to_thread(wait_until, lambda: store.spool.used == 0, "letting go of the tail")
    assert (await append(store, first, WHOLE[4000:LENGTH])).offset == LENGTH


async def test_a_tail_in_memory_is_as_large_as_what_is_counted() -> None:
    """A buffer of a whole part may have been used before, and then takes memory everywhere."""
    spool = Spool(4 * LENGTH)
    tails = Tails(spool)
    spool.take(1000)
    tails.keep("a", "etag", spool.buffer(PART), 1000)
    tail = tails.take("a", "etag", 1000)
    assert tail is not None
    assert len(tail) == 1000
    tails.close()


async def test_a_refused_body_leaves_no_bytes_in_memory(opened: Opened) -> None:
    store, other = opened(), opened()
    upload = await append(store, await created(store, None), WHOLE[:10])
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, b"wrong")
    await writer.discard()
    await writer.close(sync=False)
    upload = await append(store, await store.load("x"), WHOLE[10:20])
    await store.save(upload.info._replace(length=20), fence=UNFENCED)
    assert await content_of(other, await finished(other, await other.load("x"))) == WHOLE[:20]


async def test_a_finish_that_failed_and_was_undone_is_none(
    opened: Opened, proxy: FaultProxy
) -> None:
    """Its object was stored, and nobody was told: not the store, and not whoever waits for the event."""
    store, other = opened(repeat_seconds=0.0), opened()
    upload = await filled(store, await created(store, 5), b"hello")
    proxy.inject(seed=1, rate=1.0, kinds=["lost"])
    with pytest.raises(StorageError):
        await store.finish(upload.info._replace(finished_at=1.5), sync=True, fence=UNFENCED)
    proxy.inject(seed=1, rate=0.0)
    assert (await other.load("x")).finished
    await store.save(upload.info, fence=UNFENCED)
    await store.settle("x", fence=UNFENCED)
    for each in (store, other):
        found = await each.load("x")
        assert (found.offset, found.finished) == (5, False)
    await store.finish(upload.info._replace(finished_at=2.5), sync=True, fence=UNFENCED)
    assert (await other.load("x")).info.finished_at == 2.5


async def test_a_holder_that_lost_the_lock_takes_back_no_finish(opened: Opened) -> None:
    store, late = opened(), opened()
    await filled(store, await created(store, 5), b"hello")
    await late.load("x")
    await finished(store, await filled(late, await late.load("x"), b"hello"))
    await late.settle("x", fence=UNFENCED)
    assert (await late.load("x")).info.finished_at == 1.0


async def test_parts_are_sent_while_the_body_comes_and_are_never_listed(
    opened: Opened, proxy: FaultProxy
) -> None:
    store = opened()
    upload = await append(store, await created(store, LENGTH), *pieces(WHOLE))
    assert proxy.requests["UploadPart"] == 3
    await assert_whole(store, upload)
    assert proxy.requests["ListParts"] == 0
    assert await opened.keys() == ["x", "x.info"]


async def test_another_process_lists_parts_once_and_goes_on(
    opened: Opened, proxy: FaultProxy
) -> None:
    first, second = opened(), opened()
    upload = await append(first, await created(first, LENGTH), *pieces(WHOLE[: PART + 10]))
    assert upload.offset == PART + 10
    upload = await second.load("x")
    assert upload.offset == PART + 10
    for at in range(PART + 10, LENGTH, 1_500_000):
        upload = await append(second, upload, WHOLE[at : at + 1_500_000])
    assert proxy.requests["ListParts"] == 1
    await assert_whole(second, upload)
    assert await opened.keys() == ["x", "x.info"]


async def test_a_length_may_come_after_all_bytes(opened: Opened) -> None:
    store, other = opened(), opened()
    upload = await append(store, await created(store, None), *pieces(WHOLE))
    await store.save(upload.info._replace(length=LENGTH), fence=UNFENCED)
    await assert_whole(other, await other.load("x"))


async def test_the_bucket_knows_type_name_and_metadata(opened: Opened) -> None:
    store = opened()
    metadata = {
        "filename": "r\u00f6ntgen.dcm".encode(),
        "filetype": b"application/dicom",
        "Patient": "M\u00fcller".encode(),
        "note": b"x" * 5000,
        "raw": b"\xff\x00",
    }
    header = serialize(metadata)
    info = UploadInfo("x", 5, metadata=metadata, metadata_header=header, created_at=1.0)
    await finished(store, await append(store, await store.create(info), b"hello"))
    properties = (await store.objects.head(store.layout.data(info))).properties
    assert properties.content_type == "application/dicom"
    assert properties.content_disposition == "attachment; filename*=UTF-8''r%C3%B6ntgen.dcm"
    kept = dict(properties.metadata)
    assert len(kept.pop("tusd-py-token")) == 32
    assert kept.pop("tusd-py-finished", "") in {"", "0 1.0"}
    # What does not fit stays in the record alone.
    assert kept == {
        "filename": "r%C3%B6ntgen.dcm",
        "filetype": "application/dicom",
        "patient": "M%C3%BCller",
        "raw": "%FF%00",
    }
    assert (await store.load("x")).info.metadata == metadata


# -- what counts ---------------------------------------------------------------------------------


async def test_a_part_behind_a_gap_does_not_count(opened: Opened) -> None:
    store, other = opened(), opened()
    upload = await append(store, await created(store, LENGTH), *pieces(WHOLE[: PART + 10]))
    live = store._live["x"]
    key = store.layout.data(upload.info)
    await store.objects.upload_part(key, live.record.multipart, 3, WHOLE[2 * PART :])
    found = await other.load("x")
    assert found.offset == PART + 10
    await assert_whole(other, await append(other, found, *pieces(WHOLE[PART + 10 :])))


async def test_a_list_that_lags_tells_less_and_loses_nothing(
    opened: Opened, proxy: FaultProxy
) -> None:
    store, other = opened(), opened()
    upload = await append(store, await created(store, None), *pieces(WHOLE))
    assert upload.offset == LENGTH
    proxy.lag = 1
    found = await other.load("x")
    # Not the tail either: it starts behind the part that is missing.
    assert found.offset == PART
    proxy.lag = 0
    await append(other, found, *pieces(WHOLE[PART:]))
    await other.save(found.info._replace(length=LENGTH), fence=UNFENCED)
    await assert_whole(other, await other.load("x"))


async def test_no_multipart_upload_is_no_proof_of_completion(opened: Opened) -> None:
    store, other = opened(), opened()
    upload = await append(store, await created(store, LENGTH), *pieces(WHOLE[: PART + 10]))
    record = store._live["x"].record
    key = store.layout.data(upload.info)
    await store.objects.abort(key, record.multipart)
    assert (await other.load("x")).offset == 0
    # Nor is an object of the right size that somebody else put there.
    await store.objects.put(key, WHOLE, Properties(), kind=ObjectKind.DATA)
    assert (await other.load("x")).offset == 0


async def test_a_refused_body_that_was_partly_stored_does_not_count(opened: Opened) -> None:
    """Its length was not declared, and turned out to be too much after parts were sent."""
    store, other = opened(), opened()
    wrong = bytes(2 * PART)
    upload = await append(store, await created(store, None), WHOLE[:10])
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, *pieces(wrong))
    await writer.discard()
    await writer.close(sync=False)
    for each in (store, other):
        assert (await each.load("x")).offset == 10
    upload = await append(other, await other.load("x"), *pieces(WHOLE[10 : PART + 20]))
    # The second part of the refused body is still listed.
    assert (await store.load("x")).offset == upload.offset == PART + 20
    upload = await append(store, await store.load("x"), *pieces(WHOLE[PART + 20 :]))
    await store.save(upload.info._replace(length=LENGTH), fence=UNFENCED)
    await assert_whole(other, await other.load("x"))


@pytest.mark.parametrize("began", [0, 10, PART])
async def test_what_a_flush_stored_of_a_refused_body_does_not_count(
    opened: Opened, began: int
) -> None:
    """Also where no tail was there before."""
    store, other = opened(), opened()
    upload = await append(store, await created(store, LENGTH), *pieces(WHOLE[:began]))
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    assert isinstance(writer, S3Writer)
    await write_all(writer, bytes(60))
    await writer.relieve()
    assert (await other.load("x")).offset == began + 60
    await write_all(writer, *pieces(bytes(LENGTH)))
    await writer.discard()
    await writer.close(sync=False)
    third = opened()
    for each in (store, third):
        assert (await each.load("x")).offset == began
    for at in range(began, LENGTH, PART):
        upload = await append(third, await third.load("x"), *pieces(WHOLE[at : at + PART]))
    await assert_whole(third, upload)
    assert await opened.keys() == ["x", "x.info"]


async def test_a_tail_without_bytes_is_none(opened: Opened) -> None:
    """The length that is declared in the end is 0."""
    store, other = opened(), opened()
    writer = await store.open_writer(await created(store, None), PLAIN, fence=UNFENCED)
    assert isinstance(writer, S3Writer)
    await write_all(writer, bytes(60))
    await writer.relieve()
    await writer.discard()
    await writer.close(sync=False)
    upload = await other.load("x")
    assert upload.offset == 0
    await other.save(upload.info._replace(length=0), fence=UNFENCED)
    assert await content_of(other, await finished(other, await other.load("x"))) == b""


async def test_what_a_client_may_be_told_is_what_another_process_finds(opened: Opened) -> None:
    """Not what is in memory, nor parts in place of those of a refused body, until the record says that they count."""
    store, other = opened(), opened()
    writer = await store.open_writer(await created(store, None), PLAIN, fence=UNFENCED)
    await write_all(writer, *pieces(bytes(2 * PART + 1)))
    await writer.discard()
    await writer.close(sync=False)
    writer = await store.open_writer(await store.load("x"), PLAIN, fence=UNFENCED)
    for piece in pieces(WHOLE):
        await write_all(writer, piece)
        kept = writer.kept
        assert kept <= (await other.load("x")).offset
    assert isinstance(writer, S3Writer)
    await writer.relieve()
    assert writer.kept == (await other.load("x")).offset == LENGTH
    await writer.close(sync=False)


async def test_a_flush_never_takes_back_what_was_acknowledged(opened: Opened) -> None:
    """The tail moves behind parts that took the place of a refused body's, which did not count before."""
    store, other = opened(), opened()
    upload = await append(store, await created(store, None), WHOLE[:10])
    refused = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(refused, *pieces(bytes(2 * PART)))
    await refused.discard()
    await refused.close(sync=False)
    writer = await store.open_writer(await store.load("x"), PLAIN, fence=UNFENCED)
    await write_all(writer, *pieces(WHOLE[10 : PART + 20]))
    assert isinstance(writer, S3Writer)
    await writer.relieve()
    # As after kill -9 of the first.
    found = await other.load("x")
    assert found.offset == PART + 20
    upload = await append(other, found, *pieces(WHOLE[PART + 20 :]))
    await other.save(upload.info._replace(length=LENGTH), fence=UNFENCED)
    await assert_whole(other, await other.load("x"))


# -- who writes ----------------------------------------------------------------------------------


async def test_a_tail_that_comes_late_from_an_earlier_holder_replaces_nothing(
    opened: Opened,
) -> None:
    store, other = opened(), opened()
    upload = await append(store, await created(store, LENGTH), WHOLE[:10])
    late = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(late, b"late")
    await append(other, await other.load("x"), WHOLE[10:100])
    with pytest.raises(LeaseLost):
        await late.close(sync=False)
    assert (await other.load("x")).offset == 100
    await assert_whole(other, await append(other, await other.load("x"), *pieces(WHOLE[100:])))


async def test_a_record_that_another_holder_replaced_is_not_replaced(opened: Opened) -> None:
    store, other = opened(), opened()
    upload = await created(store, None)
    await append(other, await other.load("x"), b"hello")
    with pytest.raises(LeaseLost):
        await store.save(upload.info._replace(length=9), fence=UNFENCED)
    assert (await other.load("x")).length is None


# -- slow bodies, short memory -------------------------------------------------------------------


async def test_the_bytes_of_a_slow_body_count_before_its_end(opened: Opened) -> None:
    store, other = opened(flush_seconds=0.05), opened()
    writer = await store.open_writer(await created(store, LENGTH), PLAIN, fence=UNFENCED)
    await write_all(writer, WHOLE[:10])
    async with asyncio.timeout(30):
        while (await other.load("x")).offset != 10:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)
    await write_all(writer, *pieces(WHOLE[10:]))
    await writer.close(sync=False)
    await assert_whole(store, await store.load("x"))


async def test_a_part_that_is_larger_than_the_memory_for_parts_is_filled_without_being_put_away(
    opened: Opened, proxy: FaultProxy
) -> None:
    store = opened(spool_bytes=1024 * 1024)
    upload = await append(store, await created(store, LENGTH), *pieces(WHOLE[: PART - 10]))
    assert proxy.requests_about("x.part")["PutObject"] == 1
    assert store.spool.used == 0
    await assert_whole(store, await append(store, upload, *pieces(WHOLE[PART - 10 :])))


async def test_many_bodies_share_little_memory(opened: Opened) -> None:
    """More arrives than may wait: those with the most put their bytes away and go on later."""
    store = opened(spool_bytes=4 * 1024 * 1024)
    names = [f"{number:032x}" for number in range(3)]
    uploads = [await store.create(UploadInfo(name, PART + 99)) for name in names]
    writers = [await store.open_writer(each, PLAIN, fence=UNFENCED) for each in uploads]
    most = 0
    for piece in pieces(WHOLE[: PART + 99]):
        for writer in writers:
            async with asyncio.timeout(60):
                await write_all(writer, piece)
            most = max(most, store.spool.used)
    for writer in writers:
        await writer.close(sync=False)
    assert store.spool.used == 0
    assert most < 6 * 1024 * 1024
    for name in names:
        upload = await finished(store, await store.load(name))
        assert await content_of(store, upload) == WHOLE[: PART + 99]


# -- completion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["lost", "error-body", "error-body-after", "500", "slow-down"])
async def test_a_completion_counts_whatever_its_response_was(
    opened: Opened, proxy: FaultProxy, fault: Fault
) -> None:
    store, other = opened(), opened()
    upload = await append(store, await created(store, LENGTH), *pieces(WHOLE))
    proxy.plan("CompleteMultipartUpload", fault)
    await assert_whole(store, upload)
    assert (await other.load("x")).finished


async def test_nothing_is_completed_before_all_bytes_are_there(
    opened: Opened, proxy: FaultProxy
) -> None:
    store = opened()
    upload = await append(store, await created(store, LENGTH), *pieces(WHOLE[:-1]))
    with pytest.raises(StorageError, match="has 10486759 bytes, not 10486760"):
        await finished(store, upload)
    assert proxy.requests["CompleteMultipartUpload"] == 0
    await assert_whole(store, await append(store, upload, WHOLE[-1:]))


async def test_a_completion_outlives_its_request(opened: Opened, proxy: FaultProxy) -> None:
    store, other = opened(), opened()
    upload = await append(store, await created(store, LENGTH), *pieces(WHOLE))
    proxy.plan("CompleteMultipartUpload", "slow-down")
    request = asyncio.ensure_future(store.sync(upload, fence=UNFENCED))
    async with asyncio.timeout(30):
        while not proxy.requests["CompleteMultipartUpload"]:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.001)
    request.cancel()
    await store.stop()
    assert (await other.load("x")).complete
    assert await opened.keys() == ["x", "x.info"]
    assert proxy.requests["CompleteMultipartUpload"] == 2


async def test_a_second_upload_that_nobody_recorded_is_aborted(
    opened: Opened, proxy: FaultProxy
) -> None:
    store = opened()
    proxy.plan("CreateMultipartUpload", "lost")
    upload = await append(store, await created(store, LENGTH), *pieces(WHOLE[: PART + 10]))
    key = store.layout.data(upload.info)
    [pending] = await store.objects.pending_uploads(key)
    assert pending == store._live["x"].record.multipart
    await store.remove("x", fence=UNFENCED, keep_tombstone=False)
    assert await store.objects.pending_uploads(key) == []
    assert await opened.keys() == []


@pytest.mark.parametrize("length", [5, LENGTH])
async def test_every_request_may_be_lost_or_refused_once(
    opened: Opened, proxy: FaultProxy, length: int
) -> None:
    store = opened()
    data = WHOLE[:length]
    for operation in (
        "PutObject",
        "PutObject",
        "CreateMultipartUpload",
        "UploadPart",
        "GetObject",
        "HeadObject",
        "DeleteObject",
    ):
        if length > PART or operation in {"PutObject", "GetObject"}:
            proxy.plan(operation, "lost", "500")
    upload = await created(store, length)
    if length > PART:
        # So that there is a tail to remove.
        upload = await append(store, upload, *pieces(data[:-1]))
    upload = await append(store, upload, *pieces(data[upload.offset :]))
    assert upload.offset == length
    upload = await finished(store, upload)
    assert await content_of(store, upload) == data


# -- joins ---------------------------------------------------------------------------------------


async def joined(store: S3Store, sizes: list[int]) -> bytes:
    parts: list[Upload] = []
    expected = b""
    for number, size in enumerate(sizes):
        data = (WHOLE + WHOLE)[number : number + size]
        info = UploadInfo(f"p{number}", size, is_partial=True, created_at=1.0)
        content = Content(size, None, False)
        upload = await append(store, await store.create(info), *pieces(data), content=content)
        parts.append(await finished(store, upload))
        expected += data
    info = UploadInfo(
        "f", len(expected), is_final=True, parts=tuple(p.id for p in parts), created_at=1.0
    )
    await store.create(info)
    await store.joiner.join(info, parts, fence=UNFENCED)
    final = await store.load("f")
    assert final.complete
    assert await content_of(store, await finished(store, final)) == expected
    return expected


async def test_parts_are_copied_in_the_bucket_and_small_ends_go_through_a_buffer(
    opened: Opened, proxy: FaultProxy
) -> None:
    store = opened()
    await joined(store, [2 * PART + 100, 100, PART + 1])
    assert proxy.requests["UploadPartCopy"] == 3
    # One part of the final begins in the first part and ends in the third.
    assert proxy.requests["GetObject"] > 3


async def test_a_final_has_equal_parts(
    seaweedfs: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Cloudflare R2 demands: of uploads, and of what is joined from them."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    async with AsyncExitStack() as stack:
        rules = stack.enter_context(RulesProxy(seaweedfs.address, equal_parts))
        opened = Opened(stack, rules.endpoint, prefix)
        await joined(opened(equal_parts=True), [PART + 7, LENGTH, 3])
        assert not rules.refused


@pytest.mark.parametrize("fault", ["lost", "error-body", "error-body-after", "500"])
async def test_a_join_survives_what_happens_to_copies(
    opened: Opened, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.plan("UploadPartCopy", fault)
    await joined(opened(), [PART, 2 * PART])


async def test_a_finished_upload_takes_an_empty_request_and_no_other_name_is_asked_for(
    opened: Opened, proxy: FaultProxy
) -> None:
    store, other = opened(), opened()
    await finished(store, await append(store, await created(store, 5), b"hello"))
    for each in (store, other):
        upload = await append(each, await each.load("x"))
        assert (upload.offset, upload.finished) == (5, True)
    before = proxy.requests.total()
    for name in ("..", ".", "", "a/../b", "\0", "x.info"):
        with pytest.raises(UploadNotFound):
            await store.load(name)
    assert proxy.requests.total() == before


# -- reading ---------------------------------------------------------------------------------------


async def test_only_so_many_clients_are_served_at_a_time(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes memory for as long as it takes to read."""
    monkeypatch.setattr(s3_reader, "_RESERVE_SECONDS", 0.1)
    store = opened()
    upload = await append(store, await store.create(UploadInfo("x", 5), fence=UNFENCED), b"hello")
    reader = await store.open_reader(upload)
    served = [await store.open_reader(upload) for _ in range(s3_reader.MOST_CLIENTS)]
    for each in served:
        await each.reserve()
    with pytest.raises(StorageUnavailable, match="256 clients are being served"):
        await reader.reserve()
    # What the server reads for itself is not counted.
    assert await content_of(store, upload) == b"hello"
    for _ in range(2):
        served[0].close()
    await reader.reserve()
    with pytest.raises(StorageUnavailable):
        await served[0].reserve()
    for each in (reader, *served):
        each.close()
