"""An upload that is resumed at the moment at which it expires and is swept."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.redis import RedisServer
from tusd_py.events.model import RequestView
from tusd_py.locks.base import Locks
from tusd_py.locks.epochs import Epochs
from tusd_py.locks.fallback import FallbackLocks
from tusd_py.locks.memory import MemoryLocks
from tusd_py.locks.ofd import OfdLocks
from tusd_py.locks.redis import RedisLocks
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Append, Content
from tusd_py.redis import RedisClient
from tusd_py.storage.base import UploadGone, UploadInfo
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.receive import BodyEnd, GetBuffer, Watcher, WriteView
from tusd_py.uploads.service import Uploads

BEGIN, REST = b"hello ", b"world"
WINDOW = 0.006
"""Seconds in which the upload is swept and is resumed."""


class WholeBody:
    """A body that is there at once."""

    def __init__(self, data: bytes) -> None:
        self.end: BodyEnd | None = None
        self.watcher: Watcher | None = None
        self._data = data

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        data, self._data = self._data, b""
        if not data:
            self.end = self.end or BodyEnd.COMPLETE
        return data

    async def stream_to(self, _write: WriteView, _get_buffer: GetBuffer | None = None) -> bool:
        return False

    def stop(self, end: BodyEnd) -> None:
        self._data, self.end = b"", end

    def trailers(self) -> Mapping[str, str]:
        return {}


async def expire(uploads: Uploads, upload_id: str) -> bool:
    """Remove an upload as the sweep does; True if it was removed."""
    [outcome] = (await uploads.expire_each([upload_id])).values()
    assert isinstance(outcome, bool)
    return outcome


async def race(here: Uploads, there: Uploads, store: FileStore, number: int, lives: float) -> str:
    """One upload, resumed by one process' part and swept by another's; what came of it. lives: seconds until it expires."""
    info = UploadInfo(id=f"u{number}", length=len(BEGIN + REST), created_at=time.time() - 1000)
    await store.create(info)
    path = Path(store.data_path(info))
    path.write_bytes(BEGIN)
    changed = time.time() - here.policy.expire_after + lives
    os.utime(path, (changed, changed))

    async def resume() -> str:
        await asyncio.sleep(random.uniform(0, WINDOW))
        command = Append(len(BEGIN), None, Content(len(REST), None, False))
        try:
            result = await here.append(info.id, command, WholeBody(REST), RequestView())
        except ProtocolError as refusal:
            return str(refusal.status)
        return "finished" if result.upload.finished else "unfinished"

    async def sweep() -> bool:
        await asyncio.sleep(random.uniform(0, WINDOW))
        return await expire(there, info.id)

    outcome, swept = await asyncio.gather(resume(), sweep())
    if outcome == "finished":
        assert not swept
        assert path.read_bytes() == BEGIN + REST
        return outcome
    assert outcome == "410"
    if not swept:
        # It expired between the sweep's look and the client's.
        assert path.read_bytes() == BEGIN
        assert await expire(there, info.id)
    with pytest.raises(UploadGone):
        await store.load(info.id)
    assert not path.exists()
    return outcome


def locks_of(kind: str, redis_clients: list[RedisClient], path: Path) -> list[Locks]:
    """Two ways to the same locks: those of one process, or of two."""
    if kind == "memory":
        return [MemoryLocks()] * 2
    each = [RedisLocks(redis_client) for redis_client in redis_clients]
    if kind == "redis":
        return list(each)
    directory = path.with_name("epochs")
    directory.mkdir()
    return [
        FallbackLocks(
            redis, OfdLocks(str(path)), Epochs(str(directory), is_local=True), redis_client
        )
        for redis, redis_client in zip(each, redis_clients, strict=True)
    ]


@pytest.mark.parametrize("kind", ["memory", "redis", "redis and files"])
async def test_a_thousand_times_the_bytes_are_right_or_the_upload_is_gone(
    tmp_path: Path, kind: str, record_property: Callable[[str, object], None]
) -> None:
    store = FileStore(tmp_path / "uploads")
    store.open()
    policy = UploadPolicy(expire_after=100.0, durability="none")
    with RedisServer(tmp_path / "redis") as redis:
        redis_clients = [RedisClient(redis.url, timeout=30.0) for _ in range(2)]
        for redis_client in redis_clients:
            await redis_client.start()
        locks = locks_of(kind, redis_clients, tmp_path / "locks")
        here, there = (Uploads(store, each, policy=policy) for each in locks)
        seen: Counter[str] = Counter()
        lives = WINDOW / 2
        for number in range(1000):
            outcome = await race(here, there, store, number, lives)
            seen[outcome] += 1
            # About half of them shall be in time, however fast the machine is at the moment.
            lives *= 1.1 if outcome == "410" else 1 / 1.1
        for each in locks:
            await each.stop()
        for redis_client in redis_clients:
            await redis_client.stop()
    store.close()
    record_property(f"races of a resume with a sweep, locks in {kind}", dict(seen))
    assert set(seen) == {"finished", "410"}
