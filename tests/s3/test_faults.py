"""The adapter with failing networks and stores: retries, errors and log lines."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from tests.s3.conftest import OpenStore
from tests.s3.proxies import FAULTS, Fault, FaultProxy
from tests.s3.servers import BUCKET, S3Server
from tusd_py.storage.s3 import aiobotocore_store
from tusd_py.storage.s3.object_store import (
    MIN_PART_BYTES,
    ObjectKind,
    ObjectNotFound,
    PreconditionFailed,
    Properties,
    StoreUnavailable,
)
from tusd_py.storage.s3.requests import ObjectStore

PLAIN = Properties()
RECORD = ObjectKind.RECORD
BIG = bytes(range(256)) * (MIN_PART_BYTES // 256)


@pytest.fixture
async def proxy(seaweedfs: S3Server) -> AsyncIterator[FaultProxy]:
    with FaultProxy(seaweedfs.address) as proxy:
        yield proxy
        assert proxy.pending == 0, "a planned fault never happened"


@pytest.fixture
async def store(proxy: FaultProxy, open_store: OpenStore) -> ObjectStore:
    return await open_store(proxy.endpoint)


@pytest.mark.parametrize("fault", ["lost", "cut", "500", "slow-down", "twice"])
async def test_a_part_is_stored_whatever_happens_to_its_request(
    proxy: FaultProxy, store: ObjectStore, prefix: str, fault: Fault
) -> None:
    key = f"{prefix}x"
    upload = (await store.create_multipart(key, PLAIN)).upload_id
    proxy.plan("UploadPart", fault)
    part = await store.upload_part(key, upload, 1, BIG)
    assert part in await store.list_parts(key, upload)
    await store.complete(key, upload, [part])
    assert (await store.read(key, limit=len(BIG)))[1] == BIG


@pytest.mark.parametrize("fault", ["error-body", "slow-down", "cut", "500"])
async def test_a_completion_that_was_refused_at_first(
    proxy: FaultProxy, store: ObjectStore, prefix: str, fault: Fault
) -> None:
    """Among them the 200 whose body is an error: it is none that counts."""
    key = f"{prefix}x"
    upload = (await store.create_multipart(key, PLAIN)).upload_id
    part = await store.upload_part(key, upload, 1, b"hello")
    proxy.plan("CompleteMultipartUpload", fault)
    await store.complete(key, upload, [part])
    assert proxy.requests["CompleteMultipartUpload"] == 2
    assert (await store.head(key)).size == 5


@pytest.mark.parametrize("fault", ["error-body", "error-body-after", "lost"])
async def test_a_copy_that_answers_200_with_an_error_is_made_again(
    proxy: FaultProxy, store: ObjectStore, prefix: str, fault: Fault
) -> None:
    await store.put(f"{prefix}source", BIG, PLAIN, kind=ObjectKind.DATA)
    source = await store.head(f"{prefix}source")
    upload = (await store.create_multipart(f"{prefix}x", PLAIN)).upload_id
    proxy.plan("UploadPartCopy", fault)
    part = await store.copy_part(f"{prefix}x", upload, 1, source, start=0, end=len(BIG))
    assert proxy.requests["UploadPartCopy"] == 2
    await store.complete(f"{prefix}x", upload, [part])
    assert (await store.read(f"{prefix}x", limit=len(BIG)))[1] == BIG


async def test_an_error_in_a_200_that_lasts_is_an_error(
    proxy: FaultProxy, open_store: OpenStore, prefix: str
) -> None:
    store = await open_store(proxy.endpoint, repeat_seconds=0)
    upload = (await store.create_multipart(f"{prefix}x", PLAIN)).upload_id
    part = await store.upload_part(f"{prefix}x", upload, 1, b"hello")
    proxy.plan("CompleteMultipartUpload", "error-body")
    with pytest.raises(StoreUnavailable, match="InternalError"):
        await store.complete(f"{prefix}x", upload, [part])
    with pytest.raises(ObjectNotFound):
        await store.head(f"{prefix}x")


async def test_a_condition_may_fail_against_an_attempt_of_its_own(
    proxy: FaultProxy, store: ObjectStore, prefix: str
) -> None:
    proxy.plan("PutObject", "lost")
    with pytest.raises(PreconditionFailed):
        await store.put(f"{prefix}x", b"mine", PLAIN, kind=RECORD, if_absent=True)
    assert (await store.read(f"{prefix}x", limit=10))[1] == b"mine"


async def test_a_caller_learns_that_a_second_upload_may_have_begun(
    proxy: FaultProxy, store: ObjectStore, prefix: str
) -> None:
    proxy.plan("CreateMultipartUpload", "lost")
    begun = await store.create_multipart(f"{prefix}x", PLAIN)
    assert begun.may_have_twin
    pending = await store.pending_uploads(f"{prefix}x")
    assert len(pending) == 2
    for each in pending:
        await store.abort(f"{prefix}x", each)


async def test_a_cut_download_is_told_and_a_small_read_is_repeated(
    proxy: FaultProxy, store: ObjectStore, prefix: str
) -> None:
    await store.put(f"{prefix}x", BIG, PLAIN, kind=ObjectKind.DATA)
    proxy.plan("GetObject", "cut-response")
    received: list[bytes] = []
    async with await store.get(f"{prefix}x") as stream:
        with pytest.raises(StoreUnavailable):
            received.extend([data async for data in stream.chunks(65_536)])
    proxy.plan("GetObject", "cut-response")
    assert (await store.read(f"{prefix}x", limit=len(BIG)))[1] == BIG


async def test_a_refusal_that_is_cut_is_asked_for_again(
    proxy: FaultProxy, store: ObjectStore, prefix: str
) -> None:
    proxy.plan("GetObject", "cut-response")
    with pytest.raises(ObjectNotFound):
        await store.read(f"{prefix}x", limit=10)
    assert proxy.requests["GetObject"] == 2


async def test_a_list_that_lags_lacks_only_the_newest_parts(
    proxy: FaultProxy, store: ObjectStore, prefix: str
) -> None:
    upload = (await store.create_multipart(f"{prefix}x", PLAIN)).upload_id
    for number in (1, 2, 3):
        await store.upload_part(f"{prefix}x", upload, number, b"x")
    proxy.lag = 1
    assert [part.number for part in await store.list_parts(f"{prefix}x", upload)] == [1, 2]
    proxy.lag = 0
    await store.abort(f"{prefix}x", upload)


async def test_repeats_end_and_the_log_names_what_an_operator_looks_up(
    proxy: FaultProxy, open_store: OpenStore, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(proxy.endpoint, repeat_seconds=4)
    proxy.inject(seed=1, rate=1.0, kinds=["slow-down"])
    with caplog.at_level(logging.INFO), pytest.raises(StoreUnavailable) as failed:
        await store.put(f"{prefix}x", b"x", PLAIN, kind=RECORD)
    assert (failed.value.code, failed.value.status, failed.value.request_id) == (
        "SlowDown",
        503,
        "TESTS",
    )
    assert f"put_object s3://{BUCKET}/{prefix}x" in str(failed.value)
    assert proxy.requests["PutObject"] > 2
    levels = [record.levelno for record in caplog.records]
    assert levels[0] == logging.INFO
    assert levels[-1] == logging.WARNING
    fields = vars(caplog.records[-1])
    said = repr(fields)
    assert "SlowDown" in said
    assert "tests-secret-key" not in said
    assert "Signature" not in said


async def test_a_refusal_for_good_is_not_repeated(
    proxy: FaultProxy, store: ObjectStore, prefix: str
) -> None:
    with pytest.raises(ObjectNotFound):
        await store.head(f"{prefix}x")
    assert proxy.requests["HeadObject"] == 1


async def test_faults_by_chance_are_the_same_for_the_same_seed(
    seaweedfs: S3Server, open_store: OpenStore, prefix: str
) -> None:
    seen: list[list[str]] = []
    for _ in range(2):
        with FaultProxy(seaweedfs.address) as proxy:
            store = await open_store(proxy.endpoint)
            proxy.inject(seed=7, rate=0.3, kinds=[f for f in FAULTS if f != "slow-down"])
            for number in range(30):
                await store.put(f"{prefix}{number}", b"x", PLAIN, kind=RECORD)
            seen.append(sorted(proxy.injected.elements()))
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 2


async def test_a_process_that_stood_still_does_not_repeat_a_request(
    proxy: FaultProxy, store: ObjectStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upload may have been removed meanwhile: nothing would remove what it stores then."""
    clock = SimpleNamespace(monotonic=time.monotonic)
    monkeypatch.setattr(aiobotocore_store, "time", clock)

    def stand_still(record: logging.LogRecord) -> bool:
        if "repeated" in record.getMessage():
            clock.monotonic = lambda: time.monotonic() + 700
        return True

    logger = logging.getLogger(aiobotocore_store.__name__)
    monkeypatch.setattr(logger, "filters", [stand_still])
    monkeypatch.setattr(logger, "level", logging.INFO)
    proxy.plan("PutObject", "500")
    with pytest.raises(StoreUnavailable, match="stood still"):
        await store.put(f"{prefix}x", b"x", PLAIN, kind=ObjectKind.DATA)
    assert proxy.requests["PutObject"] == 1
