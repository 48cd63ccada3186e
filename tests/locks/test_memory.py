"""Locks in memory that are acquired only if they are free, and HEAD requests that acquire them so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tusd_py.events.model import RequestView
from tusd_py.locks.base import LocksClosed
from tusd_py.locks.memory import MemoryLocks
from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import UploadInfo
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.service import Uploads


async def test_a_lock_is_acquired_at_once_if_it_is_free() -> None:
    locks = MemoryLocks()
    lease = locks.try_acquire("a")
    assert lease is not None
    assert lease.is_held()
    assert locks.try_acquire("a") is None
    other = locks.try_acquire("b")
    assert other is not None
    await lease.release()
    await other.release()
    assert locks.try_acquire("a") is not None


async def test_closed_locks_are_not_acquired() -> None:
    locks = MemoryLocks()
    locks.close()
    assert locks.try_acquire("a") is None
    with pytest.raises(LocksClosed):
        await locks.acquire("a", timeout=1)


async def test_a_head_request_releases_what_it_acquired_and_asks_the_holder(tmp_path: Path) -> None:
    store, locks = FileStore(tmp_path), MemoryLocks()
    store.open()
    uploads = Uploads(store, locks)
    try:
        await store.create(UploadInfo(id="there", length=5))
        assert (await uploads.inspect("there", RequestView())).offset == 0
        with pytest.raises(ProtocolError):
            await uploads.inspect("missing", RequestView())
        for upload_id in ("there", "missing"):
            lease = locks.try_acquire(upload_id)
            assert lease is not None, upload_id
            await lease.release()

        holder = await locks.acquire("there", timeout=1)
        requests: list[str] = []

        def release() -> None:
            requests.append("there")
            (tmp_path / "there").write_bytes(b"123")
            holder.hand_over()

        holder.on_requested(release)
        assert (await uploads.inspect("there", RequestView())).offset == 3
        assert requests == ["there"]
    finally:
        store.close()
