"""Removals on a full disk: answered, recorded, and announced once there is room, also after a kill in between."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest

from tests.conftest import MakeServer
from tests.delivery import test_uploads
from tests.delivery.conftest import House
from tests.delivery.test_uploads import REQUEST, NoBody
from tests.durability.volume import require_mounts
from tests.support.tus import Tus, id_of, metadata
from tests.support.waiting import wait_until
from tusd_py.events import outbox_record
from tusd_py.events.model import EventType
from tusd_py.events.publisher import EventPublisher
from tusd_py.locks.base import UNFENCED
from tusd_py.protocol.tus import Creation
from tusd_py.storage.base import RemovalEvent, StorageFull, UnpublishedRemoval, UploadGone
from tusd_py.storage.file.removal import Removal
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.service import Uploads

MOST = 40


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    require_mounts(tmp_path)
    root = tmp_path / "small-disk"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root)], check=True)
    yield root
    subprocess.run(["umount", "-l", str(root)], check=True)


def fill(root: Path) -> Path:
    """A file that takes all the room that is left."""
    filler = root / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


@pytest.mark.parametrize("killed", [False, True])
def test_every_removal_is_told(
    house: House, make_server: MakeServer, small_disk: Path, *, killed: bool
) -> None:
    server = make_server("--sweep-interval", "1h", env=house.env, upload_dir=small_disk / "uploads")
    tus = Tus(server)
    # Without a byte, so that they make no room when they go.
    paths = [tus.new(5, headers={"Upload-Metadata": metadata(n=str(n))}) for n in range(MOST)]
    untold = server.upload_dir / ".tusd-py" / "untold"
    filler = fill(small_disk)
    for path in paths:
        assert tus.delete(path).status == 204
        fill(small_disk)
    assert [tus.head(path).status for path in paths] == [410] * MOST
    assert len(list(untold.iterdir())) > 0
    if killed:
        server.kill9()
    filler.unlink()
    if killed:
        server.restart()
    house.work(server)
    wait_until(lambda: not list(untold.iterdir()), "the records")
    house.endpoint.wait_for("post-terminate", MOST)
    told = [str(call.upload["ID"]) for call in house.endpoint.of("post-terminate")]
    assert sorted(told) == sorted(map(id_of, paths))
    assert [tus.head(path).status for path in paths] == [410] * MOST


# -- each step at which a server may die ---------------------------------------------------------


async def begun(uploads: Uploads, kind: EventType) -> tuple[str, RemovalEvent]:
    creation = Creation(5, {"a": b"b"}, "a Yg==", None, "", None)
    upload = (await uploads.create(creation, (), NoBody(), REQUEST)).upload
    return upload.id, RemovalEvent(outbox_record.id_of(kind, upload.info), 0)


Step = Literal["renamed", "freed", "written", "tombstone"]


@pytest.mark.parametrize("kind", [EventType.POST_TERMINATE, EventType.POST_EXPIRE])
@pytest.mark.parametrize("step", ["renamed", "freed", "written", "tombstone"])
async def test_a_removal_that_died_is_told_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step, kind: EventType
) -> None:
    uploads, store = house_of(tmp_path)
    publisher = EventPublisher(uploads.hooks, store.outbox, durable=False)
    upload_id, event = await begun(uploads, kind)
    data = Path(store.root, upload_id)

    class Died(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Died

    dies_in = {"renamed": (Removal, "_free"), "tombstone": (os, "truncate")}
    with monkeypatch.context() as patched:
        if step in dies_in:
            patched.setattr(*dies_in[step], die)
        with suppress(Died):
            await store.remove(upload_id, fence=UNFENCED, unpublished=event)
            for removal in await store.unpublished_removals() if step != "freed" else ():
                await publisher.record_late(removal, REQUEST, UNFENCED)
                if step == "tombstone":
                    await store.forget_removal(removal, fence=UNFENCED)
    assert data.exists() == (step == "renamed")
    with pytest.raises(UploadGone):
        await store.load(upload_id)
    await uploads.recover_removals()
    await store.tidy(tombstone_ttl=3600.0)
    assert not data.exists()
    assert await store.unpublished_removals() == []
    told = [outbox_record.parse(kept.content) for kept in await store.outbox.of(upload_id)]
    assert [record.event.type for record in told] == [EventType.POST_CREATE, kind]
    assert told[1].event.upload.metadata == {"a": b"b"}
    tombstone = Path(store.root, ".tusd-py", "gone", upload_id)
    assert tombstone.stat().st_size == 0
    with pytest.raises(UploadGone):
        await store.load(upload_id)
    store.close()


async def test_what_is_removed_again_is_told_twice_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id that is used again while the removal of the first upload waits to be told."""
    uploads, store = house_of(tmp_path)
    upload_id, event = await begun(uploads, EventType.POST_TERMINATE)
    info = (await store.load(upload_id)).info

    async def full(*_: object, **__: object) -> None:
        raise StorageFull("no room")

    with monkeypatch.context() as patched:
        patched.setattr(store.outbox, "keep", full)
        await uploads.terminate(upload_id, REQUEST)
        await uploads.recover_removals()
    assert len(await store.unpublished_removals()) == 1
    await store.create(info)
    Path(store.data_path(info)).write_bytes(b"new")
    await uploads.recover_removals()
    assert await store.unpublished_removals() == []
    assert (await store.load(upload_id)).offset == 3
    assert event.event_id in {kept.event_id for kept in await store.outbox.of(upload_id)}
    store.close()


async def test_a_removal_that_another_process_has_published_is_not_published_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, store = house_of(tmp_path)
    upload_id, event = await begun(uploads, EventType.POST_TERMINATE)
    await store.remove(upload_id, fence=UNFENCED, unpublished=event)
    removals = await store.unpublished_removals()
    await uploads.recover_removals()
    for kept in await store.outbox.of(upload_id):
        # Delivered.
        await store.outbox.forget(kept)

    async def listed_before() -> list[UnpublishedRemoval]:
        return removals

    monkeypatch.setattr(store, "unpublished_removals", listed_before)
    await uploads.recover_removals()
    assert await store.outbox.of(upload_id) == []
    store.close()


def house_of(tmp_path: Path) -> tuple[Uploads, FileStore]:
    return test_uploads.house(tmp_path, "none")
