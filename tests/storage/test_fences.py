"""Changes of the store are refused once the lock is lost, and a record is replaced but never created."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.delivery.test_uploads import REQUEST, NoBody, empty, house
from tests.support.store import PLAIN, VERIFIED, write_all
from tusd_py.events import outbox_record
from tusd_py.locks.base import UNFENCED, Fence, HeldFence, LeaseLost
from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import StorageError, Upload, UploadGone, UploadInfo, UploadNotFound
from tusd_py.storage.file.store import FileStore

INFO = UploadInfo("a", 0, created_at=1_700_000_000.0)
FINISHED = UploadInfo("a", 0, created_at=1_700_000_000.0, finished_at=1_700_000_001.0)
FINAL = UploadInfo("f", 0, is_final=True, parts=("a",), created_at=1_700_000_000.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    store = FileStore(tmp_path / "uploads")
    store.open()
    yield store
    store.close()


def lost() -> HeldFence:
    return HeldFence(lambda: False)


async def write(store: FileStore, upload: Upload, fence: Fence) -> None:
    writer = await store.open_writer(upload, PLAIN, fence=fence)
    try:
        await write_all(writer, b"x")
    finally:
        await writer.close(sync=False)


async def discard(store: FileStore, upload: Upload, fence: Fence) -> None:
    writer = await store.open_writer(upload, PLAIN, fence=fence)
    try:
        await writer.discard()
    finally:
        await writer.close(sync=False)


async def recover(store: FileStore, upload: Upload, fence: Fence) -> None:
    writer = await store.open_writer(upload, VERIFIED, fence=UNFENCED)
    await write_all(writer, b"of a chunk that was never verified")
    writer.abandon()
    await writer.close(sync=False)
    cut = await store.load(upload.id)
    assert cut.is_cut
    await store.recover(cut, fence=fence)


CHANGES: dict[str, Callable[[FileStore, Upload, Fence], Awaitable[object]]] = {
    "write": write,
    "discard": discard,
    "recover": recover,
    "save": lambda store, upload, fence: store.save(upload.info, fence=fence),
    "finish": lambda store, _, fence: store.finish(FINISHED, sync=False, fence=fence),
    "finish durably": lambda store, _, fence: store.finish(FINISHED, sync=True, fence=fence),
    "remove": lambda store, upload, fence: store.remove(upload.id, fence=fence),
    "join": lambda store, upload, fence: store.joiner.join(FINAL, [upload], fence=fence),
    "keep": lambda store, upload, fence: store.outbox.keep(upload.id, "e0", b"{}", fence=fence),
}


def everything(store: FileStore) -> dict[str, bytes]:
    """Return every file, without the server's own, and its content."""
    found: dict[str, bytes] = {}
    for directory, _, names in os.walk(store.root):
        for name in names:
            path = Path(directory, name)
            if name not in ("server.lock", "redis-seen") and not path.is_symlink():
                found[str(path)] = path.read_bytes()
    return found


@pytest.mark.parametrize("change", [*CHANGES])
async def test_without_the_lock_nothing_changes(store: FileStore, change: str) -> None:
    await store.create(INFO)
    upload = await store.load("a")
    before = everything(store)
    with pytest.raises(LeaseLost):
        await CHANGES[change](store, upload, lost)
    after = everything(store)
    if change == "recover":
        assert after.pop(f"{store.root}/a") == b"of a chunk that was never verified"
        before.pop(f"{store.root}/a")
    assert after == before


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
