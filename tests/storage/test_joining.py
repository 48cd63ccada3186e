"""Joins of files, in threads of their own and in time slices; and finals that wait for parts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tusd_py.events.model import RequestView
from tusd_py.locks.base import UNFENCED
from tusd_py.locks.memory import MemoryLocks
from tusd_py.storage.base import Upload, UploadGone, UploadInfo, UploadNotFound
from tusd_py.storage.file import joining
from tusd_py.storage.file import store as file_store
from tusd_py.storage.file.joining import copy_some
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.pending_finals import PendingFinals
from tusd_py.uploads.service import Uploads

TIMEOUT = 60.0


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    store = FileStore(tmp_path / "uploads")
    store.open()
    yield store
    await asyncio.to_thread(store.close)


async def part(store: FileStore, name: str, data: bytes) -> Upload:
    info = UploadInfo(id=name, length=len(data), is_partial=True, created_at=1.0)
    await store.create(info)
    Path(store.data_path(info)).write_bytes(data)
    return await store.load(name)


def final(name: str, *parts: str) -> UploadInfo:
    return UploadInfo(id=name, length=None, is_final=True, parts=parts, created_at=1.0)


async def test_joins_leave_the_stores_threads_alone(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def wait(source: int, target: int, count: int, offset: int) -> int:
        go_on.wait(TIMEOUT)
        return copy_some(source, target, count, offset)

    monkeypatch.setattr(joining, "copy_some", wait)
    # A disk may be slow for a moment, for other tests.
    monkeypatch.setattr(file_store, "_PROBE_SECONDS", TIMEOUT)
    small = await part(store, "small", b"hello")
    joins = [
        asyncio.create_task(store.joiner.join(final(f"f{n}"), [small] * 3, fence=UNFENCED))
        for n in range(64)
    ]
    other = UploadInfo(id="other", length=1, created_at=1.0)
    async with asyncio.timeout(TIMEOUT / 2):
        await store.create(other)
        Path(store.data_path(other)).write_bytes(b"x")
        await store.finish(other._replace(finished_at=2.0), sync=True, fence=UNFENCED)
        await store.remove("other", fence=UNFENCED)
        await store.check()
    assert not any(join.done() for join in joins)
    go_on.set()
    await asyncio.gather(*joins)
    assert {Path(store.root, f"f{n}").read_bytes() for n in range(64)} == {b"hello" * 3}


async def test_a_small_join_does_not_wait_for_large_ones(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_SLICE_SECONDS", 0.0)
    small = await part(store, "small", b"hello")
    done = asyncio.Event()
    after: list[bool] = []

    async def large(name: str) -> None:
        await store.joiner.join(final(name), [small] * 5000, fence=UNFENCED)
        after.append(done.is_set())

    running = [asyncio.create_task(large(f"large{n}")) for n in range(8)]
    await asyncio.sleep(0)
    await store.joiner.join(final("quick"), [small], fence=UNFENCED)
    done.set()
    await asyncio.gather(*running)
    assert after == [True] * 8
    assert Path(store.root, "large0").read_bytes() == b"hello" * 5000


async def test_a_part_that_goes_while_it_is_joined_is_not_found(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await part(store, "a", b"first"), await part(store, "b", b"second")

    def remove(source: int, target: int, count: int, offset: int) -> int:
        Path(store.root, "b").unlink(missing_ok=True)
        return copy_some(source, target, count, offset)

    monkeypatch.setattr(joining, "copy_some", remove)
    with pytest.raises(UploadNotFound):
        await store.joiner.join(final("f", "a", "b"), [first, second], fence=UNFENCED)
    assert not Path(store.root, "f").exists()
    assert list(Path(store.root, ".tusd-py", "new").iterdir()) == []


class CountingStore(FileStore):
    """loads: number of loads."""

    loads = 0

    async def load(self, upload_id: str) -> Upload:
        self.loads += 1
        return await super().load(upload_id)


async def test_a_final_that_waits_for_many_parts_is_looked_at_cheaply(tmp_path: Path) -> None:
    store = CountingStore(tmp_path / "uploads")
    store.open()
    uploads = Uploads(store, MemoryLocks())
    names = [f"p{number}" for number in range(1600)]
    for name in names:
        await store.create(
            UploadInfo(id=name, length=1, is_partial=True, created_at=uploads.expiry.now())
        )
    info = final("f", *names)._replace(created_at=uploads.expiry.now())
    await store.create(info)
    await store.joiner.await_parts(names, "f")
    await uploads.inspect("f", RequestView())
    counts: list[int] = []
    upload = await uploads.load("f")
    for name in names:
        Path(store.root, name).write_bytes(b"x")
        part = (await store.load(name)).with_info(finished_at=uploads.expiry.now())
        await store.finish(part.info, sync=False, fence=UNFENCED)
        before = store.loads
        upload = await uploads.inspect("f", RequestView())
        counts.append(store.loads - before)
        assert upload.length == 1600
    assert upload.joined
    # Each part is seen finished once; the age of all is looked at seldom, and all once more to be joined.
    assert sorted(counts)[len(counts) // 2] <= 6
    await asyncio.to_thread(store.close)


async def test_pending_finals_see_what_is_removed() -> None:
    there = {name: Upload(UploadInfo(id=name, length=1), 0, 1.0) for name in "ab"}

    async def load(upload_id: str) -> Upload:
        if upload_id not in there:
            raise UploadGone(upload_id)
        return there[upload_id]

    pending = PendingFinals(load, expire_after=100.0)
    waiting = Upload(final("f", "a", "b", "a"), 0, 1.0, joined=False)
    assert await pending.missing(waiting) == "a"
    assert await pending.length(waiting) == 3
    there["a"] = there["a"]._replace(offset=1)
    assert await pending.missing(waiting) == "a"
    there["a"] = there["a"].with_info(finished_at=2.0)
    assert await pending.missing(waiting) == "b"
    del there["b"]
    with pytest.raises(UploadGone):
        await pending.missing(waiting)
    # Another final with its id knows nothing of it.
    again = Upload(final("f", "a")._replace(created_at=2.0), 0, 1.0, joined=False)
    assert await pending.missing(again) is None
    assert await pending.length(again) == 1
