"""The table of an upload's states, and that uploads follow it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.test_reception import WholeBody
from tusd_py.events.hooks import Hooks
from tusd_py.events.model import Event, Reject, RequestView
from tusd_py.locks.memory import MemoryLocks
from tusd_py.protocol.concat import Final, Partial
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Append, Content, Creation
from tusd_py.storage.base import UploadGone, UploadNotFound
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.model import TRANSITIONS, UploadState
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.service import Uploads

DAY = 86_400.0
REQUEST = RequestView()


def reachable(start: UploadState) -> set[UploadState]:
    found, left = {start}, [start]
    while left:
        new = set(TRANSITIONS[left.pop()]) - found
        found |= new
        left += new
    return found


@pytest.mark.parametrize("state", UploadState)
def test_each_state_can_be_reached_and_left(state: UploadState) -> None:
    assert state in reachable(UploadState.ABSENT)
    assert UploadState.ABSENT in reachable(state)
    assert state not in TRANSITIONS[state]


class Scene:
    """Uploads with a clock of their own, and a pre-finish hook that refuses if `refuses` is set."""

    def __init__(self, directory: Path) -> None:
        self.now = 1_700_000_000.0
        self.refuses = False
        self.seen: dict[str, list[UploadState]] = {}
        self.store = FileStore(directory)
        self.store.open()
        self.uploads = Uploads(
            self.store,
            MemoryLocks(),
            policy=UploadPolicy(retain_finished=30 * DAY, tombstone_ttl=0.0),
            hooks=Hooks([self]),
            clock=lambda: self.now,
        )

    async def pre_finish(self, event: Event) -> None:
        await self.look(event.upload.id)
        if self.refuses:
            raise Reject

    async def look(self, upload_id: str) -> UploadState:
        """Records the state, and checks that the table allows it after the one before."""
        try:
            upload = await self.uploads.load(upload_id)
        except UploadGone:
            state = UploadState.REMOVED
        except UploadNotFound:
            state = UploadState.ABSENT
        else:
            state = self.uploads.state_of(upload)
        seen = self.seen.setdefault(upload_id, [UploadState.ABSENT])
        if state is not seen[-1]:
            assert state in TRANSITIONS[seen[-1]], f"{seen[-1]} -> {state}"
            seen.append(state)
        return state

    async def create(self, length: int, *, is_part: bool = False) -> str:
        concat = Partial() if is_part else None
        command = Creation(length, {}, "", concat, "partial" if is_part else "", None)
        return (await self.uploads.create(command, (), WholeBody(b""), REQUEST)).upload.id

    async def append(self, upload_id: str, offset: int, data: bytes) -> None:
        content = Content(len(data), None, False)
        await self.uploads.append(
            upload_id, Append(offset, None, content), WholeBody(data), REQUEST
        )
        upload = await self.store.load(upload_id)
        os.utime(self.store.data_path(upload.info), (self.now, self.now))

    async def join(self, *parts: str) -> str:
        command = Creation(None, {}, "", Final(parts), "final;" + " ".join(parts), None)
        return (await self.uploads.create(command, parts, WholeBody(b""), REQUEST)).upload.id


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(tmp_path / "uploads")
    yield made
    await made.uploads.drain()
    made.store.close()


async def test_from_the_creation_to_the_end_of_the_tombstone(scene: Scene) -> None:
    upload_id = await scene.create(4)
    await scene.append(upload_id, 0, b"ab")
    assert await scene.look(upload_id) is UploadState.RECEIVING
    await scene.append(upload_id, 2, b"cd")
    assert await scene.look(upload_id) is UploadState.FINISHED
    scene.now += 31 * DAY
    assert await scene.look(upload_id) is UploadState.EXPIRED
    assert await scene.uploads.expire_each([upload_id]) == {upload_id: True}
    assert await scene.look(upload_id) is UploadState.REMOVED
    await scene.uploads.tidy()
    assert await scene.look(upload_id) is UploadState.ABSENT
    assert set(scene.seen[upload_id]) == set(UploadState) - {UploadState.WAITING}


async def test_one_that_a_hook_does_not_let_finish_stays_complete(scene: Scene) -> None:
    scene.refuses = True
    upload_id = await scene.create(2)
    with pytest.raises(ProtocolError):
        await scene.append(upload_id, 0, b"ab")
    assert await scene.look(upload_id) is UploadState.COMPLETE
    await scene.uploads.terminate(upload_id, REQUEST)
    assert await scene.look(upload_id) is UploadState.REMOVED


async def test_a_final_waits_for_its_parts(scene: Scene) -> None:
    part = await scene.create(2, is_part=True)
    final = await scene.join(part)
    assert await scene.look(final) is UploadState.WAITING
    await scene.append(part, 0, b"ab")
    await scene.uploads.drain()
    assert await scene.look(final) is UploadState.FINISHED
    assert UploadState.COMPLETE in scene.seen[final]
