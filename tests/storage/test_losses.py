"""Which unfinished uploads count after the disk lost bytes: those begun since, whatever the clocks say."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.store import PLAIN, write_all
from tusd_py.locks.base import UNFENCED
from tusd_py.storage.base import BytesNotKept, UploadInfo
from tusd_py.storage.file.losses import Losses
from tusd_py.storage.file.store import FileStore

DAY_NS = 86_400 * 10**9
Open = Callable[[], FileStore]


@pytest.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the directory as another server does, which knows nothing of what the first one wrote."""
    stores: list[FileStore] = []

    def make() -> FileStore:
        stores.append(FileStore(tmp_path / "uploads"))
        stores[-1].open("shared")
        return stores[-1]

    yield make
    for store in stores:
        await asyncio.to_thread(store.close)


@pytest.fixture
def store(open_store: Open) -> FileStore:
    return open_store()


def mark_of(store: FileStore) -> Path:
    return Path(store.root, ".tusd-py", "write-back-failed")


def lose(store: FileStore) -> Losses:
    store._losses.record()
    return store._losses


async def append(store: FileStore, upload_id: str, data: bytes) -> int:
    """Append as a request does; returns the new offset."""
    upload = await store.recover(await store.load(upload_id), fence=UNFENCED)
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, data)
    await writer.close(sync=False)
    return (await store.load(upload_id)).offset


async def begin(store: FileStore, upload_id: str, data: bytes = b"hello") -> None:
    await store.create(UploadInfo(upload_id, 10, created_at=time.time()))
    assert await append(store, upload_id, data) == len(data)


def put_time(path: Path, days: int) -> None:
    then = time.time_ns() + days * DAY_NS
    os.utime(path, ns=(then, then))


@pytest.mark.parametrize("days", [-400, 0, 400])
async def test_what_was_begun_before_begins_again(
    store: FileStore, open_store: Open, days: int
) -> None:
    """Also if the clock was ahead when its bytes were written, or was set back before the loss."""
    await begin(store, "x")
    put_time(Path(store.root, "x"), days)
    lose(store)
    for each in (store, open_store()):
        assert (await each.load("x")).offset == 0
    assert await append(store, "x", b"hello") == 5
    assert await append(store, "x", b"world") == 10
    assert Path(store.root, "x").read_bytes() == b"helloworld"


@pytest.mark.parametrize("days", [-400, 400])
async def test_what_is_begun_since_counts(store: FileStore, open_store: Open, days: int) -> None:
    """Also if the clock was set back or ahead after the loss."""
    lose(store)
    put_time(mark_of(store), days)
    await begin(store, "x")
    other = open_store()
    assert (await other.load("x")).offset == 5
    assert await append(other, "x", b"world") == 10
    done = (await other.load("x")).with_info(finished_at=time.time()).info
    await other.finish(done, sync=True, fence=UNFENCED)
    assert Path(store.root, "x").read_bytes() == b"helloworld"


async def test_a_second_loss_concerns_what_was_begun_since_the_first(store: FileStore) -> None:
    numbers = [lose(store).number()]
    await begin(store, "x")
    numbers.append(lose(store).number())
    assert (await store.load("x")).offset == 0
    put_time(mark_of(store), 400)
    await begin(store, "y")
    numbers.append(lose(store).number())
    assert (await store.load("y")).offset == 0
    assert len(set(numbers)) == 3


async def test_bytes_whose_own_descriptor_reports_no_loss_count(
    store: FileStore, open_store: Open
) -> None:
    upload = await store.create(UploadInfo("x", 10, created_at=time.time()))
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, b"hello")
    lose(store)
    await write_all(writer, b"world")
    await writer.close(sync=False)
    for each in (store, open_store()):
        assert (await each.load("x")).offset == 10


async def test_bytes_of_several_requests_do_not_finish_after_a_loss(store: FileStore) -> None:
    await begin(store, "x")
    await append(store, "x", b"world")
    complete = await store.load("x")
    lose(store)
    with pytest.raises(BytesNotKept):
        await store.finish(
            complete.with_info(finished_at=time.time()).info, sync=True, fence=UNFENCED
        )
    assert (await store.load("x")).offset == 0


async def test_a_loss_that_an_earlier_version_recorded_counts_by_its_time(store: FileStore) -> None:
    await begin(store, "before")
    await begin(store, "after")
    mark_of(store).touch()
    put_time(mark_of(store), -1)
    put_time(Path(store.root, "before"), -2)
    assert (await store.load("before")).offset == 0
    assert (await store.load("after")).offset == 5
    # A time in the future holds nothing up that is begun now.
    put_time(mark_of(store), 1)
    assert (await store.load("after")).offset == 0
    assert await append(store, "after", b"hello") == 5


async def test_removed_uploads_leave_nothing(store: FileStore) -> None:
    lose(store)
    await begin(store, "x")
    directory = Path(store.root, ".tusd-py", "since-loss")
    assert [each.name for each in directory.iterdir()] == ["x"]
    await store.remove("x", fence=UNFENCED)
    assert list(directory.iterdir()) == []
