"""Events that were recorded and have not happened: who may drop them, and when."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.delivery.test_delivery import EXPIRE, FINISH, TERMINATE, Hook
from tests.delivery.test_uploads import REQUEST, NoBody, empty
from tusd_py.events import outbox_record
from tusd_py.events.hooks import Hooks
from tusd_py.events.model import EventType
from tusd_py.events.publisher import EventPublisher
from tusd_py.locks.base import UNFENCED
from tusd_py.locks.memory import MemoryLocks
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Creation
from tusd_py.storage.base import KeptEvent, StorageError, Upload, UploadInfo
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.service import Uploads

HOUR = 3600.0


@dataclass
class World:
    """Uploads whose clock can be ahead of that of the disk. ahead: seconds."""

    store: FileStore
    ahead: float = 0.0

    def __post_init__(self) -> None:
        hook = Hook()
        hooks = Hooks([hook], delivered={"a": hook})
        self.locks = MemoryLocks()
        self.publisher = EventPublisher(hooks, self.store.outbox, durable=False)
        self.uploads = Uploads(
            self.store,
            self.locks,
            policy=UploadPolicy(durability="none", expire_after=0.0),
            hooks=hooks,
            publisher=self.publisher,
            clock=lambda: time.time() + self.ahead,
        )

    async def upload(self) -> Upload:
        creation = Creation(5, {}, "", None, "", None)
        return (await self.uploads.create(creation, (), NoBody(), REQUEST)).upload

    async def kept(self, upload_id: str) -> list[EventType]:
        found = await self.store.outbox.of(upload_id)
        return [outbox_record.parse(kept.content).event.type for kept in found]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = FileStore(tmp_path / "uploads")
    store.open()
    yield World(store)
    store.close()


@pytest.mark.parametrize("event_type", [FINISH, TERMINATE, EXPIRE])
async def test_what_has_not_happened_for_an_hour_is_dropped(
    world: World, event_type: EventType
) -> None:
    upload = await world.upload()
    await world.publisher.record(event_type, upload, REQUEST, UNFENCED)
    world.ahead = HOUR - 60
    assert await world.uploads.drop_abandoned_events() == 0
    world.ahead = HOUR + 60
    assert await world.uploads.drop_abandoned_events() == 1
    assert await world.kept(upload.id) == [EventType.POST_CREATE]


async def test_what_has_happened_is_never_dropped(world: World) -> None:
    finished = (await world.uploads.create(empty(), (), NoBody(), REQUEST)).upload
    removed = (await world.uploads.create(empty(), (), NoBody(), REQUEST)).upload
    await world.uploads.terminate(removed.id, REQUEST)
    world.ahead = 1000 * HOUR
    assert await world.uploads.drop_abandoned_events() == 0
    assert await world.kept(finished.id) == [EventType.POST_CREATE, FINISH]
    assert await world.kept(removed.id) == [EventType.POST_CREATE, FINISH, TERMINATE]


async def test_nothing_is_dropped_of_an_upload_that_is_locked(world: World) -> None:
    """Its holder may be about to make it happen, such as a server that stood still; clocks may differ, too."""
    upload = await world.upload()
    world.ahead = 24 * HOUR
    async with await world.locks.acquire(upload.id, timeout=1):
        await world.publisher.record(FINISH, upload, REQUEST, UNFENCED)
        assert await world.uploads.drop_abandoned_events() == 0
    assert await world.uploads.drop_abandoned_events() == 1


async def test_what_happens_before_the_lock_is_free_is_not_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await world.upload()
    finished = upload.with_info(finished_at=6.0)
    await world.publisher.record(FINISH, finished, REQUEST, UNFENCED)
    world.ahead = 24 * HOUR
    acquire = world.locks.acquire

    async def acquire_later(*arguments: object, **options: object) -> object:
        await world.store.finish(finished.info, sync=False, fence=UNFENCED)
        return await acquire(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(world.locks, "acquire", acquire_later)
    assert await world.uploads.drop_abandoned_events() == 0
    assert await world.kept(upload.id) == [EventType.POST_CREATE, FINISH]


async def test_what_is_recorded_again_before_the_lock_is_free_is_not_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await world.upload()
    await world.publisher.record(FINISH, upload, REQUEST, UNFENCED)
    world.ahead = 24 * HOUR
    acquire = world.locks.acquire

    async def acquire_later(*arguments: object, **options: object) -> object:
        await world.publisher.record(FINISH, upload, REQUEST, UNFENCED)
        return await acquire(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(world.locks, "acquire", acquire_later)
    assert await world.uploads.drop_abandoned_events() == 0
    assert await world.kept(upload.id) == [EventType.POST_CREATE, FINISH]


async def test_what_a_power_cut_left_empty_is_dropped(world: World) -> None:
    upload = await world.upload()
    await world.store.outbox.keep(upload.id, "0a", b"", fence=UNFENCED)
    assert await world.uploads.drop_abandoned_events() == 0
    world.ahead = 2 * HOUR
    assert await world.uploads.drop_abandoned_events() == 1
    assert await world.kept(upload.id) == [EventType.POST_CREATE]


async def test_what_cannot_be_read_is_left_to_the_workers(world: World) -> None:
    upload = await world.upload()
    await world.store.outbox.keep(upload.id, "0a", b"{", fence=UNFENCED)
    world.ahead = 2 * HOUR
    assert await world.uploads.drop_abandoned_events() == 0
    assert len(await world.store.outbox.of(upload.id)) == 2


# -- what took long ------------------------------------------------------------------------------


async def forget_all(world: World, upload_id: str) -> None:
    """Drop the events of an upload, as another process does with the lock that this one has lost."""
    for kept in await world.store.outbox.of(upload_id):
        await world.store.outbox.forget(kept)


async def test_a_finish_that_took_long_is_recorded_again_if_its_event_was_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = world.store.finish

    async def finish_late(info: UploadInfo, **options: object) -> None:
        world.ahead = 2 * HOUR
        await forget_all(world, info.id)
        await finish(info, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(world.store, "finish", finish_late)
    upload = (await world.uploads.create(empty(), (), NoBody(), REQUEST)).upload
    assert await world.kept(upload.id) == [FINISH]


@pytest.mark.parametrize("event_type", [TERMINATE, EXPIRE])
async def test_a_removal_that_took_long_is_recorded_again_if_its_event_was_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch, event_type: EventType
) -> None:
    creation = Creation(5, {}, "", None, "", None)
    upload = (await world.uploads.create(creation, (), NoBody(), REQUEST)).upload
    name = "remove" if event_type is TERMINATE else "remove_each"
    remove = getattr(world.store, name)

    async def remove_late(*arguments: object, **options: object) -> object:
        world.ahead += 2 * HOUR
        await forget_all(world, upload.id)
        return await remove(*arguments, **options)

    monkeypatch.setattr(world.store, name, remove_late)
    if event_type is TERMINATE:
        await world.uploads.terminate(upload.id, REQUEST)
    else:
        monkeypatch.setattr(world.uploads.expiry, "is_due", lambda *_: True)
        assert await world.uploads.expire_each([upload.id]) == {upload.id: True}
    assert await world.kept(upload.id) == [event_type]


async def test_what_took_long_is_not_recorded_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, found = world.store.finish, list[KeptEvent]()

    async def finish_late(info: UploadInfo, **options: object) -> None:
        world.ahead = 2 * HOUR
        found.extend(await world.store.outbox.of(info.id))
        await finish(info, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(world.store, "finish", finish_late)
    upload = (await world.uploads.create(empty(), (), NoBody(), REQUEST)).upload
    assert await world.store.outbox.of(upload.id) == found


# -- what cannot be withdrawn --------------------------------------------------------------------


async def test_an_upload_stays_as_long_as_a_stale_finish_cannot_be_withdrawn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker would take the finish for one that happened before the removal."""
    upload, other = await world.upload(), await world.upload()
    await world.publisher.record(FINISH, upload, REQUEST, UNFENCED)

    async def fail(*_: object, **__: object) -> None:
        raise StorageError("the bucket does not answer")

    with monkeypatch.context() as context:
        context.setattr(world.store.outbox, "forget", fail)
        with pytest.raises(ProtocolError) as refusal:
            await world.uploads.terminate(upload.id, REQUEST)
        assert refusal.value.status >= 500
        context.setattr(world.uploads.expiry, "is_due", lambda *_: True)
        outcomes = await world.uploads.expire_each([upload.id, other.id])
    assert isinstance(outcomes[upload.id], StorageError)
    assert outcomes[other.id] is True
    assert (await world.store.load(upload.id)).offset == 0
    await world.uploads.terminate(upload.id, REQUEST)
    assert await world.kept(upload.id) == [EventType.POST_CREATE, TERMINATE]


async def test_a_creation_that_is_taken_back_withdraws_its_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a bucket stored it, and only the response was lost."""
    keep = world.store.outbox.keep
    ids: list[str] = []

    async def keep_and_fail(upload_id: str, *arguments: object, **options: object) -> None:
        ids.append(upload_id)
        await keep(upload_id, *arguments, **options)  # type: ignore[arg-type]
        raise StorageError("no response")

    monkeypatch.setattr(world.store.outbox, "keep", keep_and_fail)
    with pytest.raises(ProtocolError):
        await world.upload()
    assert await world.kept(ids[0]) == []
