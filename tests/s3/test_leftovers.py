"""What servers that stood still, crashed or lack a permission leave in the bucket, and the sweep that removes it."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress

import pytest

from tests.s3.conftest import Opened
from tests.s3.contents import Contents, LateStore
from tests.s3.proxies import Answer, Exchange, RulesProxy, error
from tests.s3.servers import BUCKET, S3Server
from tests.s3.test_store import LENGTH, PART, WHOLE, created, finished, pieces
from tests.support.store import PLAIN, append, content_of, write_all
from tusd_py.locks.base import UNFENCED, LeaseLost
from tusd_py.storage.base import StorageError, Upload, UploadGone, UploadInfo
from tusd_py.storage.s3.object_store import ObjectKind, Properties
from tusd_py.storage.s3.store import S3Store


@pytest.fixture
def contents(seaweedfs: S3Server, prefix: str) -> Contents:
    return Contents(seaweedfs, prefix)


async def swept(store: S3Store) -> None:
    """Sweep with a clock that is ahead."""
    await LateStore(store.objects, store.options).tidy(tombstone_ttl=86_400.0)


async def begin(store: S3Store) -> Upload:
    return await append(store, await created(store, LENGTH), *pieces(WHOLE[: PART + 10]))


# -- servers that stood still --------------------------------------------------------------------


async def test_parts_of_an_upload_that_was_removed_meanwhile_do_not_stay(
    opened: Opened, contents: Contents
) -> None:
    """Its server stood still before it began a multipart upload, and did that later."""
    late, other = opened(), opened()
    upload = await created(late, LENGTH)
    await other.remove(upload.id, fence=UNFENCED)
    await late.objects.create_multipart(late.layout.data(upload.info), Properties())
    assert contents.pending() == {"x"}
    await swept(other)
    assert contents.pending() == set()
    assert contents.keys() == {".tusd-py/gone/x"}


async def test_a_server_aborts_what_it_began_in_vain(opened: Opened, contents: Contents) -> None:
    late, other = opened(), opened()
    upload = await created(late, LENGTH)
    writer = await late.open_writer(upload, PLAIN, fence=UNFENCED)
    await other.remove(upload.id, fence=UNFENCED)
    with suppress(StorageError):
        # Whether it fails already here depends on when the parts were sent.
        await write_all(writer, *pieces(WHOLE))
    with pytest.raises(StorageError):
        await writer.close(sync=False)
    assert contents.pending() == set()


@pytest.mark.parametrize("size", [10, PART - 1])
async def test_a_tail_that_comes_after_the_removal_does_not_stay(
    opened: Opened, contents: Contents, size: int
) -> None:
    late, other = opened(), opened()
    writer = await late.open_writer(await created(late, LENGTH), PLAIN, fence=UNFENCED)
    await write_all(writer, *pieces(WHOLE[:size]))
    await other.remove("x", fence=UNFENCED)
    # The bucket cannot tell: it is the first tail.
    await writer.close(sync=False)
    assert contents.keys() >= {"x.part"}
    await swept(other)
    assert contents.keys() == {".tusd-py/gone/x"}
    with pytest.raises(UploadGone):
        await late.load("x")


async def test_a_whole_object_that_comes_after_the_removal_does_not_stay(
    opened: Opened, contents: Contents
) -> None:
    late, other = opened(), opened()
    upload = await created(late, 5)
    writer = await late.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, b"hello")
    await other.remove("x", fence=UNFENCED)
    await writer.close(sync=False)
    with pytest.raises((LeaseLost, StorageError)):
        await finished(late, upload)
    await swept(other)
    assert contents.keys() == {".tusd-py/gone/x"}


async def test_a_sweep_frees_only_what_the_removed_upload_had(
    opened: Opened, contents: Contents
) -> None:
    """Its location, and its id, have another upload since."""
    store = opened()
    first = UploadInfo("x", 5, location="study/1.dcm", created_at=1.0)
    await store.create(first)
    await store.remove("x", fence=UNFENCED)
    second = UploadInfo("y", 5, location="study/1.dcm", created_at=1.0)
    upload = await finished(store, await append(store, await store.create(second), b"hello"))
    again = await append(store, await created(store, LENGTH), *pieces(WHOLE[: PART + 10]))
    await swept(store)
    assert await content_of(store, upload) == b"hello"
    assert (await opened().load("x")).offset == again.offset == PART + 10
    assert contents.pending() == {"x"}


async def test_a_sweep_leaves_what_is_not_its_own(opened: Opened, contents: Contents) -> None:
    """Another program's multipart upload, and a .part of another server."""
    store = opened()
    prefix = store.layout.info_prefix
    await store.objects.create_multipart(f"{prefix}backup.tar", Properties())
    await store.objects.put(f"{prefix}y.part", b"y", Properties(), kind=ObjectKind.DATA)
    upload = await append(store, await created(store, LENGTH), *pieces(WHOLE[: PART + 10]))
    await swept(store)
    assert contents.pending() == {"backup.tar", "x"}
    assert contents.keys() == {"y.part", "x.info", "x.part"}
    assert (await opened().load("x")).offset == upload.offset


# -- multipart uploads that are gone, or that nobody needs ------------------------------------------


async def test_an_upload_whose_parts_a_rule_of_the_bucket_removed_begins_again(
    opened: Opened,
) -> None:
    store, other = opened(), opened()
    upload = await begin(store)
    await store.objects.abort(
        store.layout.data(upload.info), (await other._look_up("x")).record.multipart
    )
    found = await opened().load("x")
    assert found.offset == 0
    third = opened()
    again = await append(third, await third.load("x"), *pieces(WHOLE))
    assert await content_of(third, await finished(third, again)) == WHOLE


async def test_the_process_that_holds_such_an_upload_begins_again_too(opened: Opened) -> None:
    store = opened()
    upload = await begin(store)
    await store.objects.abort(store.layout.data(upload.info), store._live["x"].record.multipart)
    with pytest.raises(StorageError):
        await append(store, upload, *pieces(WHOLE[upload.offset :]))
    upload = await store.load("x")
    assert upload.offset == 0
    for at in range(0, LENGTH, PART):
        # Not a second time: the next request goes on with what this one began.
        upload = await append(store, upload, *pieces(WHOLE[at : at + PART]))
    assert await content_of(opened(), await finished(store, upload)) == WHOLE


async def test_parts_that_an_earlier_holder_began_do_not_stay_with_a_small_upload(
    opened: Opened, contents: Contents
) -> None:
    """The length was unknown; its server died before it recorded them, and the client had less to send in the end."""
    store, other = opened(), opened()
    upload = await created(store, None)
    await store.objects.create_multipart(store.layout.data(upload.info), Properties())
    upload = await append(other, await other.load("x"), b"hello")
    await other.save(upload.info._replace(length=5), fence=UNFENCED)
    await finished(other, await other.load("x"))
    assert contents.pending() == set()
    assert contents.keys() == {"x", "x.info"}


def at_a_place(location: str) -> UploadInfo:
    return UploadInfo("x", LENGTH, location=location, created_at=1.0)


async def test_what_an_earlier_holder_began_at_a_place_does_not_stay(
    opened: Opened, contents: Contents
) -> None:
    """It died before it recorded that. The place may have been chosen by a hook, or by the operator's template."""
    store, other = opened(), opened()
    upload = await store.create(at_a_place("study/1.dcm"))
    await store.objects.create_multipart(store.layout.data(upload.info), Properties())
    upload = await append(other, await other.load("x"), *pieces(WHOLE))
    assert await content_of(other, await finished(other, upload)) == WHOLE
    assert contents.pending() == set()


async def test_what_a_removed_upload_began_at_a_place_does_not_stay(
    opened: Opened, contents: Contents
) -> None:
    store, other = opened(), opened()
    upload = await store.create(at_a_place("study/1.dcm"))
    await store.objects.create_multipart(store.layout.data(upload.info), Properties())
    await other.remove("x", fence=UNFENCED)
    assert contents.pending() == set()


async def test_a_sweep_leaves_what_begins_at_a_place_that_was_left(
    opened: Opened, contents: Contents
) -> None:
    """It may be another upload's, or another program's."""
    store, other = opened(), opened()
    upload = await store.create(at_a_place("study/1.dcm"))
    await store.remove("x", fence=UNFENCED)
    await other.objects.create_multipart(other.layout.data(upload.info), Properties())
    await swept(other)
    assert contents.pending() == {"study/1.dcm"}


async def test_at_a_place_elsewhere_only_what_was_recorded_is_aborted(
    opened: Opened, contents: Contents
) -> None:
    """Other programs store there, too."""
    store, other = opened(), opened()
    prefix = store.layout.object_prefix
    upload = await store.create(at_a_place(f"s3://{BUCKET}/{prefix}elsewhere"))
    await store.objects.create_multipart(store.layout.data(upload.info), Properties())
    await append(other, await other.load("x"), *pieces(WHOLE[: PART + 10]))
    await other.remove("x", fence=UNFENCED)
    assert contents.pending() == {"elsewhere"}


# -- permissions ------------------------------------------------------------------------------------


def no_aborts(_proxy: RulesProxy, exchange: Exchange) -> Answer | None:
    if exchange.operation in {"AbortMultipartUpload", "ListMultipartUploads"}:
        return error(403, "AccessDenied", "not allowed")
    return None


async def test_without_the_permission_to_abort_only_parts_stay(
    seaweedfs: S3Server,
    prefix: str,
    opened: Opened,
    contents: Contents,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(RulesProxy(seaweedfs.address, no_aborts))
        store = Opened(stack, proxy.endpoint, prefix)()
        other = Opened(stack, proxy.endpoint, prefix)()
        # One that changes hands before it has parts, which an earlier holder may have begun.
        await created(store, LENGTH)
        upload = await append(other, await other.load("x"), *pieces(WHOLE[: PART + 10]))
        await other.remove(upload.id, fence=UNFENCED)
        with pytest.raises(UploadGone):
            await store.load("x")
        # Nor does one that cannot be freed keep others from being swept.
        await swept(store)
        assert "cannot be freed" in caplog.text or "stay in the bucket" in caplog.text
    assert contents.pending() == {"x"}
