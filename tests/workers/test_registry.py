"""The index of due uploads: written by one command a second, rebuilt from the storage, never trusted."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from tests.support.redis import RedisServer
from tusd_py.locks.memory import MemoryLocks
from tusd_py.maintenance.local import LocalMaintenance, sweep_alone
from tusd_py.redis import Keys, RedisClient, RedisUnavailable
from tusd_py.redis.due_index import DueIndex, DueIndexWriter
from tusd_py.storage.base import UploadInfo
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.due_marks import DueMarks
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.service import Uploads
from tusd_py.uploads.sweep import Sweep


class Clock:
    """Time that tests move, in seconds since the epoch."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def registry(redis: RedisServer) -> AsyncIterator[DueIndex]:
    redis_client = RedisClient(redis.url, timeout=30.0)
    await redis_client.start()
    yield DueIndex(redis_client)
    await redis_client.stop()


class Place:
    """Uploads in a directory with a clock of their own."""

    def __init__(self, directory: Path, registry: DueIndex) -> None:
        self.clock = Clock()
        self.store = FileStore(directory)
        self.store.open()
        self.writer = DueIndexWriter(registry)
        self.uploads = Uploads(
            self.store,
            MemoryLocks(),
            policy=UploadPolicy(expire_after=100.0),
            due_marks=DueMarks(self.writer, names=False),
            clock=self.clock,
        )

    async def new(self, name: str, **changes: object) -> None:
        """An unfinished upload whose last byte came now."""
        info = UploadInfo(id=name, length=10, created_at=self.clock.now)
        await self.store.create(info)
        os.utime(self.store.data_path(info), (self.clock.now, self.clock.now))
        self.writer.mark(name, self.clock.now + 100.0)


@pytest.fixture
async def place(tmp_path: Path, registry: DueIndex) -> AsyncIterator[Place]:
    made = Place(tmp_path / "uploads", registry)
    yield made
    made.store.close()


async def test_what_is_due_goes_and_the_rest_is_not_looked_at(
    place: Place, registry: DueIndex
) -> None:
    await place.new("old")
    place.clock.now += 50
    await place.new("young")
    await place.writer.flush()
    await Sweep(place.uploads, registry).check_all()
    place.clock.now += 60
    report = await Sweep(place.uploads, registry).check_due()
    assert (report.seen, report.expired) == (1, 1)
    await place.writer.flush()
    counts = await registry.counts(place.clock.now)
    assert (counts.known, counts.due, counts.is_whole) == (1, 0, True)


async def test_an_upload_that_moved_is_spared_and_looked_at_later(
    place: Place, registry: DueIndex
) -> None:
    await place.new("a")
    await place.writer.flush()
    await registry.mark_whole(await registry.data_mark())
    place.clock.now += 150
    os.utime(Path(place.store.root, "a"), (place.clock.now - 20, place.clock.now - 20))
    report = await Sweep(place.uploads, registry).check_due()
    assert (report.seen, report.expired) == (1, 0)
    assert await registry.due(place.clock.now + 79, 10) == []
    assert await registry.due(place.clock.now + 81, 10) == ["a"]


async def test_a_sweep_that_removes_nothing_keeps_the_index(
    place: Place, registry: DueIndex
) -> None:
    await place.new("old")
    place.clock.now += 150
    await place.new("young")
    report = await Sweep(place.uploads, registry, removes=False).check_all()
    assert (report.seen, report.expired) == (2, 1)
    assert await registry.due(place.clock.now, 10) == ["old"]
    counts = await registry.counts(place.clock.now)
    assert (counts.known, counts.due, counts.is_whole) == (2, 1, True)
    assert (await Sweep(place.uploads, registry).check_due()).expired == 1


async def test_changes_that_were_being_sent_at_the_end_are_sent_once_more(
    place: Place, registry: DueIndex, redis: RedisServer
) -> None:
    await place.new("a")
    place.writer.count("a", "unfinished")
    redis.pause()
    sending = asyncio.create_task(place.writer.flush())
    await asyncio.sleep(0.1)
    place.writer.mark("b", place.clock.now + 50)
    sending.cancel()
    with suppress(asyncio.CancelledError):
        await sending
    redis.resume()
    await place.writer.flush()
    assert await registry.due(place.clock.now + 200, 10) == ["b", "a"]
    assert (await registry.counts(place.clock.now)).open["unfinished"] == 1


async def test_an_emptied_redis_is_filled_again_from_the_storage(
    place: Place, registry: DueIndex, redis: RedisServer
) -> None:
    for number in range(20):
        await place.new(f"u{number}")
    await place.writer.flush()
    redis.command("FLUSHALL")
    place.clock.now += 50
    report = await Sweep(place.uploads, registry).check_due()
    assert (report.seen, report.expired) == (20, 0)
    counts = await registry.counts(place.clock.now)
    assert (counts.known, counts.is_whole) == (20, True)
    assert (await Sweep(place.uploads, registry).check_due()).seen == 0


async def test_a_redis_that_is_emptied_during_a_sweep_is_filled_by_the_next_one(
    place: Place, registry: DueIndex, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.new("a")

    async def emptied() -> int:
        redis.command("FLUSHALL")
        return 0

    with monkeypatch.context() as patched:
        # When all uploads were looked at.
        patched.setattr(place.uploads, "tidy", emptied)
        await Sweep(place.uploads, registry).check_all()
    assert not await registry.is_whole()
    assert (await Sweep(place.uploads, registry).check_due()).seen == 1
    counts = await registry.counts(place.clock.now)
    assert (counts.known, counts.is_whole) == (1, True)


async def test_an_upload_in_use_is_left_and_the_sweep_ends(
    place: Place, registry: DueIndex
) -> None:
    locks = MemoryLocks()
    uploads = Uploads(
        place.store, locks, policy=UploadPolicy(expire_after=100.0), clock=place.clock
    )
    await place.new("a")
    await place.writer.flush()
    await registry.mark_whole(await registry.data_mark())
    place.clock.now += 150
    lease = await locks.acquire("a", timeout=0)
    report = await Sweep(uploads, registry).check_due()
    assert (report.seen, report.expired) == (1, 0)
    await lease.release()
    place.clock.now += 61
    assert (await Sweep(uploads, registry).check_due()).expired == 1


async def test_a_dry_run_changes_nothing(place: Place, registry: DueIndex) -> None:
    await place.new("a")
    await place.writer.flush()
    await registry.mark_whole(await registry.data_mark())
    place.clock.now += 150
    for _ in range(2):
        report = await Sweep(place.uploads, registry, dry_run=True).check_due()
        assert (report.seen, report.expired) == (1, 1)


async def test_many_changes_are_one_command(registry: DueIndex, redis: RedisServer) -> None:
    writer = DueIndexWriter(registry)
    redis.reset_counts()
    for number in range(900):
        writer.mark(f"u{number}", 1000.0 + number)
        writer.mark(f"u{number}", 2000.0 + number)
    for number in range(100):
        writer.mark(f"u{number}", None)
    await writer.flush()
    counts = redis.counts()
    assert counts.get("evalsha", 0) + counts.get("eval", 0) <= 2  # the first time with the script
    assert (await registry.counts(0)).known == 800
    assert await registry.due(1100.0, 1) == ["u100"]


async def test_what_redis_was_not_told_while_it_was_away_it_is_told_later(
    registry: DueIndex, redis: RedisServer
) -> None:
    writer = DueIndexWriter(registry)
    redis.stop()
    writer.mark("a", 1.0)
    writer.mark("b", 1.0)
    await writer.flush()
    writer.mark("b", None)
    redis.start()
    task = asyncio.create_task(writer.run())
    async with asyncio.timeout(60):
        while True:
            with suppress(RedisUnavailable):
                if await registry.due(2.0, 10) == ["a"]:
                    break
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_one_sweep_at_a_time(place: Place, registry: DueIndex, redis: RedisServer) -> None:
    assert await registry.lock_sweep("other", lease=60)
    assert not await registry.renew_sweep("not the other", lease=600)
    assert await registry.renew_sweep("other", lease=600)
    left = redis.command("PTTL", Keys().sweep_lock)
    assert 60_000 < cast(int, left) <= 600_000
    maintenance = LocalMaintenance(place.uploads, registry)
    assert await sweep_alone(maintenance, registry, "due") is None
    await registry.unlock_sweep("not the other")
    assert await sweep_alone(maintenance, registry, "due") is None
    await registry.unlock_sweep("other")
    assert await sweep_alone(maintenance, registry, "due") is not None
    [record] = await registry.sweeps()
    assert (record.kind, record.failed) == ("due", 0)
    assert await registry.lock_sweep("next", lease=60)
