"""Changes of the store are refused once the lock is lost, and a record is replaced but never created."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.delivery.test_uploads import REQUEST, NoBody, empty, house
from tusd_py.events import outbox_record
from tusd_py.locks.base import UNFENCED, Fence, LeaseLost
from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import StorageError, UploadGone, UploadInfo, UploadNotFound
from tusd_py.storage.file.store import FileStore

INFO = UploadInfo("a", 0, created_at=1_700_000_000.0)
FINISHED = UploadInfo("a", 0, created_at=1_700_000_000.0, finished_at=1_700_000_001.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    store = FileStore(tmp_path / "uploads")
    store.open()
    yield store
    store.close()


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("is_local", [True, False])
async def test_what_was_removed_does_not_come_back(
    store: FileStore, sync: bool, is_local: bool
) -> None:
    store._layout.is_local = is_local
    await store.create(INFO)
    await store.remove("a", fence=UNFENCED)
    with pytest.raises(UploadNotFound):
        await store.save(INFO, fence=UNFENCED)
    with pytest.raises(StorageError):
        await store.finish(FINISHED, sync=sync, fence=UNFENCED)
    with pytest.raises(UploadGone):
        await store.load("a")
    assert os.listdir(f"{store.root}/.tusd-py/new") == []


async def test_what_was_to_be_announced_of_a_finish_that_failed_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, store = house(tmp_path, "finish")
    failing = True
    finish = store.finish

    async def finish_or_fail(info: UploadInfo, *, sync: bool, fence: Fence) -> None:
        if failing:
            kinds.append(await waiting(store))
            raise StorageError("the disk is gone")
        await finish(info, sync=sync, fence=fence)

    kinds: list[list[str]] = []
    monkeypatch.setattr(store, "finish", finish_or_fail)
    assert (await uploads.create(empty(), (), NoBody(), REQUEST)).problem is not None
    assert kinds == [["post-create", "post-finish"]]
    assert await waiting(store) == ["post-create"]
    failing = False
    [upload_id] = [each async for each in store.ids()]
    assert (await uploads.inspect(upload_id, REQUEST)).finished
    assert await waiting(store) == ["post-create", "post-finish"]


async def waiting(store: FileStore) -> list[str]:
    """Return the types of the waiting events, in order."""
    [upload_id] = [each async for each in store.ids()]
    return [
        str(outbox_record.parse(kept.content).event.type)
        for kept in await store.outbox.of(upload_id)
    ]


async def test_a_creation_that_lost_its_lock_tells_nothing_of_an_upload_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ids that hooks choose, another owner's upload may have the id by then."""
    uploads, store = house(tmp_path, "finish")

    async def replaced(info: UploadInfo, *, sync: bool, fence: Fence) -> None:
        await store.remove(info.id, fence=UNFENCED)
        await store.create(UploadInfo(info.id, 77, owner="bob", created_at=info.created_at))
        raise LeaseLost

    async def refuse(_info: UploadInfo, *, fence: Fence) -> None:
        raise LeaseLost

    monkeypatch.setattr(store, "finish", replaced)
    monkeypatch.setattr(store, "save", refuse)
    with pytest.raises(ProtocolError) as refused:
        await uploads.create(empty(), (), NoBody(), REQUEST)
    assert refused.value.status == 404
