"""The contract of the port, against each kind of server."""

from __future__ import annotations

import asyncio
import urllib.request

import pytest

from tests.s3.conftest import OpenStore
from tests.s3.servers import S3Server
from tusd_py.storage.s3.object_store import (
    MIN_PART_BYTES,
    ObjectKind,
    ObjectNotFound,
    ObjectStoreError,
    Part,
    PreconditionFailed,
    Properties,
    RangeNotSatisfiable,
    StoreMisconfigured,
)
from tusd_py.storage.s3.requests import ObjectStore

PLAIN = Properties()
RECORD = ObjectKind.RECORD
BIG = bytes(range(256)) * (MIN_PART_BYTES // 256)


@pytest.fixture
async def store(s3_server: S3Server, open_store: OpenStore) -> ObjectStore:
    return await open_store(s3_server.endpoint)


async def whole(store: ObjectStore, key: str) -> bytes:
    return (await store.read(key, limit=1 << 30))[1]


async def test_an_object_keeps_its_bytes_and_its_properties(
    store: ObjectStore, prefix: str
) -> None:
    key = f"{prefix}a b/ü+%.txt"
    properties = Properties(
        "text/plain", 'attachment; filename="x"', {"tusd-token": "abc", "name": "%C3%BC"}
    )
    etag = await store.put(key, b"hello", properties, kind=ObjectKind.DATA)
    head = await store.head(key)
    assert (head.key, head.size, head.etag, head.properties) == (key, 5, etag, properties)
    assert head.modified_at > 1_700_000_000
    assert await store.read(key, limit=5) == (head, b"hello")
    with pytest.raises(ObjectStoreError, match="more than the 4"):
        await store.read(key, limit=4)


async def test_a_range_of_an_object_and_its_end(store: ObjectStore, prefix: str) -> None:
    etag = await store.put(f"{prefix}x", b"0123456789", PLAIN, kind=RECORD)
    async with await store.get(f"{prefix}x", start=2, end=5, if_match=etag) as stream:
        assert stream.head.size == 10
        assert [data async for data in stream.chunks(2)] == [b"23", b"4"]
    async with await store.get(f"{prefix}x", start=8) as stream:
        assert b"".join([data async for data in stream.chunks(100)]) == b"89"
    with pytest.raises(RangeNotSatisfiable):
        await store.get(f"{prefix}x", start=10)
    with pytest.raises(PreconditionFailed):
        await store.get(f"{prefix}x", if_match='"other"')


async def test_what_is_not_there(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(ObjectNotFound):
        await store.head(f"{prefix}none")
    with pytest.raises(ObjectNotFound):
        await store.get(f"{prefix}none")
    await store.delete(f"{prefix}none")


async def test_a_condition_keeps_an_object_that_another_replaced(
    store: ObjectStore, prefix: str
) -> None:
    key = f"{prefix}x"
    first = await store.put(key, b"1", PLAIN, kind=RECORD, if_absent=True)
    with pytest.raises(PreconditionFailed):
        await store.put(key, b"2", PLAIN, kind=RECORD, if_absent=True)
    second = await store.put(key, b"2", PLAIN, kind=RECORD, if_match=first)
    with pytest.raises(PreconditionFailed):
        await store.put(key, b"3", PLAIN, kind=RECORD, if_match=first)
    assert await whole(store, key) == b"2"
    assert (await store.head(key)).etag == second


async def test_a_completion_replaces_only_the_object_that_it_is_told_of(
    store: ObjectStore, prefix: str
) -> None:
    key = f"{prefix}x"
    theirs = await store.put(key, b"theirs", PLAIN, kind=ObjectKind.DATA)
    upload = (await store.create_multipart(key, PLAIN)).upload_id
    part = await store.upload_part(key, upload, 1, b"mine")
    with pytest.raises(PreconditionFailed):
        await store.complete(key, upload, [part], if_absent=True)
    with pytest.raises(PreconditionFailed):
        await store.complete(key, upload, [part], if_match='"other"')
    assert await whole(store, key) == b"theirs"
    # Nothing is lost by it.
    await store.complete(key, upload, [part], if_match=theirs)
    assert await whole(store, key) == b"mine"


async def test_a_multipart_upload_from_its_beginning_to_its_end(
    store: ObjectStore, prefix: str
) -> None:
    key = f"{prefix}big"
    begun = await store.create_multipart(key, Properties("text/x", metadata={"tusd-token": "t"}))
    assert not begun.may_have_twin
    upload = begun.upload_id
    assert await store.pending_uploads(key) == [upload]
    assert await store.pending_uploads(f"{prefix}bi") == []
    last = await store.upload_part(key, upload, 3, b"end")
    # Stored again, as after a lost response.
    await store.upload_part(key, upload, 1, BIG)
    first = await store.upload_part(key, upload, 1, BIG)
    await store.put(f"{prefix}source", b"x" + BIG + b"y", PLAIN, kind=ObjectKind.DATA)
    source = await store.head(f"{prefix}source")
    middle = await store.copy_part(key, upload, 2, source, start=1, end=1 + len(BIG))
    listed = await store.list_parts(key, upload)
    assert [part.number for part in listed] in ([1, 2, 3], [1, 1, 2, 3])
    assert {(part.number, part.size) for part in listed} == {
        (1, len(BIG)),
        (2, len(BIG)),
        (3, 3),
    }
    with pytest.raises(ObjectNotFound):
        await store.head(key)
    await store.complete(key, upload, [first, middle, last])
    head = await store.head(key)
    assert head.size == 2 * len(BIG) + 3
    assert head.properties.content_type == "text/x"
    assert head.properties.metadata == {"tusd-token": "t"}
    assert await whole(store, key) == BIG + BIG + b"end"
    assert await store.pending_uploads(key) == []
    with pytest.raises(ObjectNotFound):
        await store.list_parts(key, upload)


async def test_a_part_that_was_replaced_never_counts(store: ObjectStore, prefix: str) -> None:
    """A list may know both, the newer one at the end, and perhaps with the same time."""
    key = f"{prefix}big"
    upload = (await store.create_multipart(key, PLAIN)).upload_id
    await store.upload_part(key, upload, 1, BIG[::-1])
    newer = await store.upload_part(key, upload, 1, BIG)
    listed = await store.list_parts(key, upload)
    assert newer in listed
    assert [part.number for part in listed] in ([1], [1, 1])
    await store.complete(key, upload, [newer])
    assert await whole(store, key) == BIG


async def test_a_copy_of_an_object_that_another_replaced_is_refused(
    store: ObjectStore, prefix: str
) -> None:
    await store.put(f"{prefix}source", BIG, PLAIN, kind=ObjectKind.DATA)
    source = await store.head(f"{prefix}source")
    await store.put(f"{prefix}source", BIG[::-1], PLAIN, kind=ObjectKind.DATA)
    upload = (await store.create_multipart(f"{prefix}big", PLAIN)).upload_id
    with pytest.raises(PreconditionFailed):
        await store.copy_part(f"{prefix}big", upload, 1, source, start=0, end=len(BIG))
    await store.abort(f"{prefix}big", upload)


async def test_an_aborted_upload_takes_no_part_and_may_be_aborted_again(
    store: ObjectStore, prefix: str
) -> None:
    key = f"{prefix}big"
    upload = (await store.create_multipart(key, PLAIN)).upload_id
    part = await store.upload_part(key, upload, 1, BIG)
    await store.abort(key, upload)
    await store.abort(key, upload)
    for attempt in (
        store.upload_part(key, upload, 2, b"x"),
        store.list_parts(key, upload),
        store.complete(key, upload, [part]),
    ):
        with pytest.raises(ObjectNotFound):
            await attempt
    assert await store.pending_uploads(key) == []


async def test_a_part_that_was_not_stored_is_not_made_up(store: ObjectStore, prefix: str) -> None:
    key = f"{prefix}big"
    upload = (await store.create_multipart(key, PLAIN)).upload_id
    part = await store.upload_part(key, upload, 1, BIG)
    with pytest.raises(ObjectStoreError, match="InvalidPart"):
        await store.complete(key, upload, [part, Part(2, part.etag, part.size)])
    with pytest.raises(ObjectNotFound):
        await store.head(key)
    await store.abort(key, upload)


async def test_lists_come_in_pages_in_the_order_of_keys(store: ObjectStore, prefix: str) -> None:
    names = [f"{prefix}{number:04}" for number in range(1003)]
    for at in range(0, len(names), 32):
        await asyncio.gather(
            *(store.put(name, b"x", PLAIN, kind=RECORD) for name in names[at : at + 32])
        )
    pages = [page async for page in store.list(prefix)]
    assert len(pages) > 1
    assert [each.key for page in pages for each in page] == names
    assert pages[0][0].size == 1
    assert [each.key async for each in store.each(prefix)] == names
    assert [page async for page in store.list(f"{prefix}none")] in ([], [[]])


async def test_a_presigned_url_serves_the_object_without_credentials(
    store: ObjectStore, prefix: str
) -> None:
    await store.put(f"{prefix}a b", b"hello", PLAIN, kind=ObjectKind.DATA)
    url = await store.presigned_get(f"{prefix}a b", seconds=60, disposition="attachment")

    def download() -> tuple[bytes, str | None]:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read(), response.headers["Content-Disposition"]

    assert await asyncio.to_thread(download) == (b"hello", "attachment")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "the secret key does not belong"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "the access key is not known"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "[Cc]redentials"),
    ],
)
async def test_wrong_credentials_are_named_and_not_told(
    s3_server: S3Server,
    open_store: OpenStore,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    said: str,
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    store = await open_store(s3_server.endpoint)
    with pytest.raises(StoreMisconfigured, match=said) as refused:
        await store.put("x", b"x", PLAIN, kind=RECORD)
    assert "tests-secret-key" not in str(refused.value)


async def test_a_missing_bucket_is_named(s3_server: S3Server, open_store: OpenStore) -> None:
    store = await open_store(s3_server.endpoint, name="no-such-bucket")
    with pytest.raises(StoreMisconfigured, match="s3://no-such-bucket/x: there is no such bucket"):
        await store.put("x", b"x", PLAIN, kind=RECORD)
