"""Sweeps of many uploads: all are removed, slow hooks do not pile up, and without Redis the sweep stops with one message."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.redis import RedisServer
from tests.support.server import environment
from tests.support.tus import Tus
from tests.support.waiting import wait_until
from tests.workers.commands import command, of
from tusd_py.events.hooks import Hooks
from tusd_py.events.model import Event
from tusd_py.locks.base import UNFENCED, HeldFence, Locks
from tusd_py.locks.memory import MemoryLocks
from tusd_py.locks.redis import RedisLocks
from tusd_py.maintenance.local import LocalMaintenance, MaintenanceError
from tusd_py.redis import RedisClient
from tusd_py.redis.due_index import DueIndex
from tusd_py.storage.base import (
    RecordUnreadable,
    Upload,
    UploadGone,
    UploadInfo,
    UploadNotFound,
)
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.service import Uploads
from tusd_py.uploads.sweep import Expired, Sweep

COUNT = 1500


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    made = FileStore(tmp_path / "uploads")
    made.open()
    yield made
    made.close()


async def abandoned(store: FileStore, count: int) -> None:
    then = time.time() - 1000
    for number in range(count):
        info = UploadInfo(id=f"u{number}", length=10, created_at=then)
        await store.create(info)
        os.utime(store.data_path(info), (then, then))


def uploads(store: FileStore, locks: Locks | None = None, hooks: Hooks | None = None) -> Uploads:
    return Uploads(
        store, locks or MemoryLocks(), policy=UploadPolicy(expire_after=100.0), hooks=hooks
    )


async def test_all_go_but_those_in_use_and_what_moved(store: FileStore) -> None:
    await abandoned(store, COUNT)
    locks = MemoryLocks()
    lease = await locks.acquire("u7", timeout=0)
    os.utime(Path(store.root, "u8"))
    report = await Sweep(uploads(store, locks)).check_all()
    assert (report.seen, report.expired, report.failed) == (COUNT, COUNT - 2, 0)
    await lease.release()
    assert sorted([each async for each in store.ids()]) == ["u7", "u8"]


async def test_what_cannot_be_read_or_removed_does_not_keep_the_others(
    store: FileStore, caplog: pytest.LogCaptureFixture
) -> None:
    await abandoned(store, 200)
    Path(store.root, "u5.info").write_text("{")
    data = Path(store.root, "u6")
    data.unlink()
    data.mkdir()
    os.utime(data, (1.0, 1.0))
    with caplog.at_level(logging.WARNING):
        report = await Sweep(uploads(store)).check_all()
    assert (report.seen, report.expired, report.failed) == (200, 198, 2)
    assert len([line for line in caplog.messages if "the sweep skipped" in line]) == 2


async def test_slow_hooks_do_not_pile_up(store: FileStore) -> None:
    """However slow they are, no more than what two batches have wait."""
    waiting = 0
    full, go = asyncio.Event(), asyncio.Event()

    class Slow:
        async def post_expire(self, _event: Event) -> None:
            nonlocal waiting
            waiting += 1
            if waiting == 1024:
                full.set()
            await go.wait()

    await abandoned(store, COUNT + 100)
    hooks = Hooks([Slow()])
    sweeping = asyncio.create_task(Sweep(uploads(store, hooks=hooks)).check_all())
    async with asyncio.timeout(60):
        await full.wait()
    done, _ = await asyncio.wait([sweeping], timeout=0.5)
    assert (waiting, done) == (1024, set())
    go.set()
    await sweeping
    await hooks.drain()
    assert waiting == COUNT + 100


async def test_without_redis_it_stops_with_one_word_and_the_next_one_goes_on(
    store: FileStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await abandoned(store, 400)
    with RedisServer(tmp_path / "redis") as redis:
        redis_client = RedisClient(redis.url, timeout=30.0)
        await redis_client.start()
        locks = RedisLocks(redis_client)
        maintenance = LocalMaintenance(uploads(store, locks), DueIndex(redis_client))
        seen = 0

        async def tell(_expired: Expired) -> None:
            nonlocal seen
            seen += 1
            if seen == 200:
                redis.stop()

        with caplog.at_level(logging.WARNING), pytest.raises(MaintenanceError) as failed:
            await maintenance.sweep("all", tell=tell, force=True)
        assert "the uploads' locks are unavailable" in str(failed.value)
        assert [record.name for record in caplog.records] == ["tusd_py.redis.client"]
        left = [each async for each in store.ids()]
        assert len(left) == 400 - 3 * 64
        redis.start()
        async with asyncio.timeout(60):
            while await redis_client.check() is not None:  # noqa: ASYNC110 - nobody tells when it is back
                await asyncio.sleep(0.02)
        report = await maintenance.sweep("all", force=True)
        assert report.expired == len(left)
        await locks.stop()
        await redis_client.stop()


async def test_sweeps_that_overlap_remove_each_upload_once(
    store: FileStore, tmp_path: Path
) -> None:
    told: list[str] = []

    class Hook:
        async def post_expire(self, event: Event) -> None:
            told.append(event.upload.id)

    await abandoned(store, COUNT)
    for number in range(100):
        await store.create(UploadInfo(id=f"kept{number}", length=10, created_at=time.time()))
    with RedisServer(tmp_path / "redis") as redis:
        redis_clients = [RedisClient(redis.url, timeout=30.0) for _ in range(3)]
        for redis_client in redis_clients:
            await redis_client.start()
        locks = [RedisLocks(redis_client) for redis_client in redis_clients]
        hooks = [Hooks([Hook()]) for _ in redis_clients]
        places = [uploads(store, *both) for both in zip(locks, hooks, strict=True)]
        reports = await asyncio.gather(
            *(Sweep(place, DueIndex(redis_clients[0])).check_all() for place in places)
        )
        for each in hooks:
            await each.drain()
        for lock in locks:
            await lock.stop()
        for redis_client in redis_clients:
            await redis_client.stop()
    assert sum(report.expired for report in reports) == COUNT
    assert sum(report.failed for report in reports) == 0
    assert sorted(told) == sorted(f"u{number}" for number in range(COUNT))
    assert len([each async for each in store.ids()]) == 100


KILLED = """
import os, signal, sys

left, truncate = 500, os.truncate

def end_removal(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    truncate(*arguments)

os.truncate = end_removal

from tusd_py.cli import main

sys.exit(main(sys.argv[1:]))
"""
"""A command that dies in the middle of a removal, when it has made so many."""


def test_what_a_killed_sweep_left_the_next_one_removes(
    make_server: MakeServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        server = make_server("--lock-lease", "1s", env=env)
        # It would end the removal that the command leaves.
        server.wait_for_first_sweep()
        tus = Tus(server)
        kept = tus.finished(b"hello")
        store = FileStore(server.upload_dir)
        asyncio.run(abandoned(store, COUNT))
        flags = ("--expire-after", "1s", "--lock-lease", "1s", *of(server))
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, "sweep", "--force", *flags],
            env=environment(env),
            capture_output=True,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        gone = server.upload_dir / ".tusd-py" / "gone"
        assert sum(file.stat().st_size > 0 for file in gone.iterdir()) == 1
        left = sum(1 for name in os.listdir(server.upload_dir) if name.endswith(".info"))
        assert left == 1 + COUNT - 501

        def are_gone() -> bool:
            # Locks of the one that was killed run out.
            done = command("sweep", "--force", *flags, env=env)
            names = os.listdir(server.upload_dir)
            return done.returncode == 0 and not any(name.startswith("u") for name in names)

        wait_until(are_gone, "the rest", timeout=60)
        assert sum(file.stat().st_size for file in gone.iterdir()) == 0
        assert tus.get(kept).body == b"hello"
        server.terminate()


def _lost() -> HeldFence:
    """The fence of a lock that was lost."""
    return HeldFence(lambda: False)


async def test_the_store_tells_of_each_what_it_tells_of_one(store: FileStore) -> None:
    await abandoned(store, 3)
    await store.remove("u2", fence=UNFENCED)
    Path(store.root, "u1.info").write_text("{")
    names = ["u0", "u1", "u2", "none", "../u0", ""]
    found = await store.load_each(names)
    assert [type(each) for each in found] == [
        Upload,
        RecordUnreadable,
        UploadGone,
        UploadNotFound,
        UploadNotFound,
        UploadNotFound,
    ]
    upload = await store.load("u0")
    assert found[0] == upload
    assert await store.remove_each([upload], fences={"u0": _lost}) == [False]
    assert await store.load("u0") == upload
    assert await store.remove_each([upload], fences={"u0": UNFENCED}) == [True]
    with pytest.raises(UploadGone):
        await store.load("u0")
    assert not Path(store.root, "u0").exists()
