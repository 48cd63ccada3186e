"""When events are recorded: before they happen, and durably before a client is told of a finish."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from tests.delivery.test_delivery import Hook
from tusd_py.events import outbox_record
from tusd_py.events.hooks import Hooks
from tusd_py.events.model import RequestView
from tusd_py.events.publisher import EventPublisher
from tusd_py.locks.memory import MemoryLocks
from tusd_py.protocol.tus import Creation
from tusd_py.storage.base import StorageFull
from tusd_py.storage.file.fsync import GroupSync
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.receive import Body, BodyEnd, GetBuffer, WriteView
from tusd_py.uploads.service import Uploads

REQUEST = RequestView("POST", "/files/", "10.0.0.1:1", {}, "http://h/files/")


class NoBody(Body):
    """Nothing comes."""

    end = BodyEnd.COMPLETE

    async def read(self) -> bytes:
        return b""

    async def stream_to(self, write: WriteView, get_buffer: GetBuffer | None = None) -> bool:
        return False

    def stop(self, end: BodyEnd) -> None: ...

    def trailers(self) -> dict[str, str]:
        return {}


class Steps:
    """The order of renames and syncs of events in the outbox, their directory, and records."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        sync, rename, pwrite = GroupSync.sync, os.rename, os.pwrite

        async def synced(
            group: GroupSync,
            data: str | None,
            *files: str,
            directories: Sequence[str] = (),
            **options: bool,
        ) -> None:
            await sync(group, data, *files, directories=directories, **options)
            for path in (data or "", *files, *directories):
                self._note("sync", path)

        def renamed(source: str, target: str) -> None:
            rename(source, target)
            self._note("rename", target)

        def written(descriptor: int, data: bytes, at: int) -> int:
            count = pwrite(descriptor, data, at)
            self._note("write", os.readlink(f"/proc/self/fd/{descriptor}"))
            return count

        monkeypatch.setattr(GroupSync, "sync", synced)
        monkeypatch.setattr(os, "pwrite", written)
        monkeypatch.setattr(os, "rename", renamed)

    def _note(self, verb: str, path: str) -> None:
        if "/outbox/" in path:
            self.seen.append(f"{verb} {'event' if os.path.isfile(path) else 'shard'}")
        elif path.endswith(".info"):
            self.seen.append(f"{verb} record")
        elif "/gone/" in path:
            self.seen.append(f"{verb} tombstone")


def house(tmp_path: Path, durability: Literal["none", "finish"]) -> tuple[Uploads, FileStore]:
    store = FileStore(tmp_path / "uploads")
    store.open()
    hook = Hook()
    hooks = Hooks([hook], delivered={"a": hook})
    publisher = EventPublisher(hooks, store.outbox, durable=durability != "none")
    policy = UploadPolicy(durability=durability)
    return Uploads(store, MemoryLocks(), policy=policy, hooks=hooks, publisher=publisher), store


def empty() -> Creation:
    return Creation(0, {}, "", None, "", None)


@pytest.mark.parametrize("durability", ["none", "finish"])
async def test_a_finish_is_written_down_before_it_is_recorded(
    tmp_path: Path, durability: Literal["none", "finish"], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    uploads, _ = house(tmp_path, durability)
    await uploads.create(empty(), (), NoBody(), REQUEST)
    created, *finished = [step for step in steps.seen if step != "sync record"]
    assert created == "rename event"
    if durability == "none":
        assert finished == ["rename event", "write record"]
    else:
        assert finished == ["rename event", "sync event", "sync shard", "write record"]


@pytest.mark.parametrize("durability", ["none", "finish"])
@pytest.mark.parametrize("count", [1, 5])
async def test_a_removal_is_written_down_durably_before_it_happens(
    tmp_path: Path,
    durability: Literal["none", "finish"],
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A power cut behind the removal would otherwise leave neither the upload nor its event."""
    steps = Steps(monkeypatch)
    uploads, _ = house(tmp_path, durability)
    command = Creation(5, {}, "", None, "", None)
    ids = [(await uploads.create(command, (), NoBody(), REQUEST)).upload.id for _ in range(count)]
    steps.seen.clear()
    if count == 1:
        await uploads.terminate(ids[0], REQUEST)
    else:
        monkeypatch.setattr(uploads.expiry, "now", lambda: time.time() + 400 * 86_400)
        assert set((await uploads.expire_each(ids)).values()) == {True}
    synced = [step for step in steps.seen if step.startswith("sync")]
    # Each upload's two events, and the shard that they are in.
    wanted = ["sync event", "sync event", "sync shard"] * count
    assert sorted(synced) == ([] if durability == "none" else sorted(wanted))
    assert steps.seen.count("rename tombstone") == count
    last = max((at for at, step in enumerate(steps.seen) if step in ("sync shard", "rename event")))
    assert steps.seen.index("rename tombstone") > last


async def test_a_full_disk_keeps_nobody_from_making_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, store = house(tmp_path, "none")
    upload = (await uploads.create(empty(), (), NoBody(), REQUEST)).upload
    keep = store.outbox.keep

    async def keep_if_there_is_room(*args: object, **options: object) -> None:
        if os.path.exists(store.data_path(upload.info)):
            raise StorageFull("no room")
        await keep(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store.outbox, "keep", keep_if_there_is_room)
    await uploads.terminate(upload.id, REQUEST)
    kinds = [
        outbox_record.parse(kept.content).event.type for kept in await store.outbox.of(upload.id)
    ]
    assert kinds == ["post-create", "post-finish", "post-terminate"]
