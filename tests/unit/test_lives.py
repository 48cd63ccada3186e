"""The life of an upload without a server: each transition of the table of states, and what each state refuses."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from tests.support.store import content_of, sha256
from tests.unit.test_reception import WholeBody
from tusd_py.events.hooks import Hooks
from tusd_py.events.model import Changes, Event, Reject, RequestView
from tusd_py.events.publisher import EventPublisher
from tusd_py.locks.base import LocksUnavailable
from tusd_py.locks.memory import MemoryLocks
from tusd_py.protocol.concat import Final, Partial
from tusd_py.protocol.errors import DUPLICATE_UPLOAD, ProtocolError
from tusd_py.protocol.tus import Append, Content, Creation
from tusd_py.storage.base import StorageError, UploadGone, UploadNotFound
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.model import TRANSITIONS, UploadState
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.service import Uploads
from tusd_py.uploads.sweep import Sweep, SweepStopped

DAY = 86_400.0
REQUEST = RequestView()
S = UploadState


class World:
    """Uploads with a clock of their own; it is their hook as well.

    Attributes:
        refuses: Whether pre-finish hooks refuse.
        changes: What pre-create hooks change.
        taken: A duplicate index in memory: the upload that has each file name.
        events: What hooks were told, by event and upload.
    """

    def __init__(self, directory: Path) -> None:
        self.now = time.time()
        self.refuses = False
        self.changes: Changes | None = None
        self.taken: dict[bytes, str] = {}
        self.events: list[tuple[str, str]] = []
        self.last_id = ""
        self.store = FileStore(directory)
        self.store.open()
        self.uploads = Uploads(
            self.store,
            MemoryLocks(),
            policy=UploadPolicy(retain_finished=30 * DAY, tombstone_ttl=0.0, durability="none"),
            hooks=Hooks([self]),
            clock=lambda: self.now,
        )

    # Hooks

    async def pre_create(self, event: Event) -> Changes | None:
        self.last_id = event.upload.id
        name = event.upload.metadata.get("filename")
        if name is not None and self.taken.setdefault(name, event.upload.id) != event.upload.id:
            raise Reject(409, "duplicate", code=DUPLICATE_UPLOAD)
        return self.changes

    async def create_failed(self, event: Event) -> None:
        self.taken = {name: each for name, each in self.taken.items() if each != event.upload.id}

    async def pre_finish(self, _event: Event) -> None:
        if self.refuses:
            raise Reject(403, "not yet")

    async def post_finish(self, event: Event) -> None:
        self.events.append(("finish", event.upload.id))

    async def post_terminate(self, event: Event) -> None:
        await self.create_failed(event)
        self.events.append(("terminate", event.upload.id))

    # Requests

    async def look(self, upload_id: str) -> UploadState:
        try:
            return self.uploads.state_of(await self.uploads.load(upload_id))
        except UploadGone:
            return S.REMOVED
        except UploadNotFound:
            return S.ABSENT

    async def create(
        self,
        length: int | None,
        data: bytes = b"",
        *,
        name: bytes | None = None,
        is_part: bool = False,
    ) -> str:
        metadata = {} if name is None else {"filename": name}
        content = Content(len(data), None, False) if data else None
        concat, header = (Partial(), "partial") if is_part else (None, "")
        command = Creation(length, metadata, "", concat, header, content)
        result = await self.uploads.create(command, (), WholeBody(data), REQUEST)
        return result.upload.id

    async def join(self, *parts: str) -> str:
        command = Creation(None, {}, "", Final(parts), "final;" + " ".join(parts), None)
        return (await self.uploads.create(command, parts, WholeBody(b""), REQUEST)).upload.id

    async def append(
        self,
        upload_id: str,
        offset: int,
        data: bytes,
        *,
        length: int | None = None,
        checksum: str = "",
        late: bool = False,
    ) -> None:
        digest = sha256(checksum.encode()) if checksum else None
        command = Append(offset, length, Content(len(data), digest, False))
        body = LateBody(self, upload_id, data) if late else WholeBody(data)
        try:
            await self.uploads.append(upload_id, command, body, REQUEST)
        finally:
            os.utime(f"{self.store.root}/{upload_id}", (self.now, self.now))

    async def refuse(self, work: Awaitable[object]) -> int:
        """The status with which a request is refused."""
        with pytest.raises(ProtocolError) as refused:
            await work
        return refused.value.status


class LateBody(WholeBody):
    """A body that comes only after the upload has expired."""

    def __init__(self, world: World, upload_id: str, data: bytes) -> None:
        super().__init__(data)
        self._world, self._upload_id, self._is_late = world, upload_id, False

    async def read(self) -> bytes:
        if not self._is_late:
            self._is_late = True
            self._world.now += 8 * DAY
            assert await self._world.look(self._upload_id) is S.EXPIRED
        return await super().read()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "uploads")
    yield made
    await made.uploads.drain()
    made.store.close()


# -- uploads in each state -----------------------------------------------------------------------


async def receiving(world: World) -> str:
    return await world.create(4, b"ab")


async def waiting(world: World) -> str:
    return await world.join(await world.create(2, is_part=True))


async def complete(world: World) -> str:
    world.refuses = True
    upload_id = await world.create(2, b"ab")
    world.refuses = False
    return upload_id


async def finished(world: World) -> str:
    return await world.create(2, b"ab")


async def expired(world: World) -> str:
    upload_id = await receiving(world)
    world.now += 8 * DAY
    return upload_id


async def removed(world: World) -> str:
    upload_id = await receiving(world)
    await world.uploads.terminate(upload_id, REQUEST)
    return upload_id


async def absent(_world: World) -> str:
    return "0" * 32


Make = Callable[[World], Awaitable[str]]
IN_STATE: Mapping[UploadState, Make] = {
    S.ABSENT: absent,
    S.RECEIVING: receiving,
    S.WAITING: waiting,
    S.COMPLETE: complete,
    S.FINISHED: finished,
    S.EXPIRED: expired,
    S.REMOVED: removed,
}


@pytest.mark.parametrize("state", UploadState)
async def test_an_upload_can_be_brought_into_each_state(world: World, state: UploadState) -> None:
    assert await world.look(await IN_STATE[state](world)) is state


# -- transitions: each starts with an upload in the first state, unless that lasts for one request


async def last_byte(world: World, upload_id: str) -> None:
    world.refuses = True
    assert await world.refuse(world.append(upload_id, 2, b"cd")) == 403


async def time_passes(world: World, _upload_id: str) -> None:
    world.now += 31 * DAY


async def delete(world: World, upload_id: str) -> None:
    await world.uploads.terminate(upload_id, REQUEST)


async def parts_finish(world: World, upload_id: str) -> None:
    [part] = (await world.uploads.load(upload_id)).info.parts
    world.refuses = True
    await world.append(part, 0, b"ab")
    await world.uploads.drain()


async def head(world: World, upload_id: str) -> None:
    await world.uploads.inspect(upload_id, REQUEST)


async def bytes_are_lost(world: World, upload_id: str) -> None:
    os.truncate(f"{world.store.root}/{upload_id}", 1)


async def sweep(world: World, upload_id: str) -> None:
    assert await world.uploads.expire_each([upload_id]) == {upload_id: True}


async def tombstone_expires(world: World, _upload_id: str) -> None:
    await world.uploads.tidy()


async def late_bytes(world: World, upload_id: str) -> None:
    world.now -= 8 * DAY
    await world.append(upload_id, 2, b"c", late=True)


async def late_last_byte(world: World, upload_id: str) -> None:
    world.now -= 8 * DAY
    world.refuses = True
    assert await world.refuse(world.append(upload_id, 2, b"cd", late=True)) == 403


Act = Callable[[World, str], Awaitable[None]]
ACTS: Mapping[tuple[UploadState, UploadState], Act] = {
    (S.RECEIVING, S.COMPLETE): last_byte,
    (S.RECEIVING, S.EXPIRED): time_passes,
    (S.RECEIVING, S.REMOVED): delete,
    (S.WAITING, S.COMPLETE): parts_finish,
    (S.WAITING, S.EXPIRED): time_passes,
    (S.WAITING, S.REMOVED): delete,
    (S.COMPLETE, S.FINISHED): head,
    (S.COMPLETE, S.RECEIVING): bytes_are_lost,
    (S.COMPLETE, S.REMOVED): delete,
    (S.FINISHED, S.EXPIRED): time_passes,
    (S.FINISHED, S.REMOVED): delete,
    (S.EXPIRED, S.RECEIVING): late_bytes,
    (S.EXPIRED, S.COMPLETE): late_last_byte,
    (S.EXPIRED, S.REMOVED): sweep,
    (S.REMOVED, S.ABSENT): tombstone_expires,
}
WITHIN_ONE_REQUEST = {
    (S.RECEIVING, S.ABSENT),
    (S.WAITING, S.ABSENT),
    (S.COMPLETE, S.ABSENT),
    (S.FINISHED, S.COMPLETE),
    (S.EXPIRED, S.WAITING),
}
"""Transitions with a test of their own below."""
CREATIONS = {(S.ABSENT, to): IN_STATE[to] for to in TRANSITIONS[S.ABSENT]}


def reachable(start: UploadState) -> set[UploadState]:
    found, left = {start}, [start]
    while left:
        new = set(TRANSITIONS[left.pop()]) - found
        found |= new
        left += new
    return found


@pytest.mark.parametrize("state", UploadState)
def test_each_state_can_be_reached_and_left(state: UploadState) -> None:
    assert state in reachable(S.ABSENT)
    assert S.ABSENT in reachable(state)
    assert state not in TRANSITIONS[state]


def test_each_transition_of_the_table_is_tried() -> None:
    table = {(before, after) for before, found in TRANSITIONS.items() for after in found}
    assert table == ACTS.keys() | WITHIN_ONE_REQUEST | CREATIONS.keys()


@pytest.mark.parametrize(("before", "after"), ACTS)
async def test_a_transition(world: World, before: UploadState, after: UploadState) -> None:
    upload_id = await IN_STATE[before](world)
    assert await world.look(upload_id) is before
    await ACTS[before, after](world, upload_id)
    assert await world.look(upload_id) is after


@pytest.mark.parametrize("make", [receiving, waiting, complete])
async def test_a_creation_that_fails_leaves_nothing(
    world: World, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: object, **_options: object) -> None:
        raise StorageError("no room for the event")

    if make is waiting:
        part = await world.create(2, is_part=True)
        work = world.join(part)
    else:
        work = world.create(0 if make is complete else 4)
    monkeypatch.setattr(EventPublisher, "record", fail)
    assert await world.refuse(work) == 500
    assert await world.look(world.last_id) is S.ABSENT


async def test_a_finish_whose_record_fails_is_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = FileStore.finish

    async def fail(*args: object, **options: object) -> None:
        await finish(*args, **options)  # type: ignore[arg-type]
        raise StorageError("the record was written, but not synced")

    upload_id = await receiving(world)
    with monkeypatch.context() as patched:
        patched.setattr(FileStore, "finish", fail)
        assert await world.refuse(world.append(upload_id, 2, b"cd")) == 500
    assert await world.look(upload_id) is S.COMPLETE
    await head(world, upload_id)
    assert await world.look(upload_id) is S.FINISHED


async def test_a_final_waits_again_once_a_late_request_brings_bytes_of_a_part(world: World) -> None:
    part = await world.create(4, is_part=True)
    final = await world.join(part)
    await world.append(part, 0, b"a", late=True)
    assert await world.look(final) is S.WAITING


# -- what each state refuses ---------------------------------------------------------------------

REFUSALS: Mapping[UploadState, tuple[int | None, int | None, int | None, int | None]] = {
    S.ABSENT: (404, 404, 404, 404),
    S.RECEIVING: (None, 409, 404, None),
    S.WAITING: (None, 403, 404, None),
    S.COMPLETE: (None, 409, 404, None),
    S.FINISHED: (None, 409, None, None),
    S.EXPIRED: (410, 410, 404, 410),
    S.REMOVED: (410, 410, 404, 410),
}
"""Status of the refusal of HEAD, of PATCH at a wrong offset, of GET and of DELETE; None for those that are served."""


@pytest.mark.parametrize("state", UploadState)
async def test_what_a_state_refuses_changes_nothing(world: World, state: UploadState) -> None:
    upload_id = await IN_STATE[state](world)
    wrong = Append(1, None, Content(1, None, False))
    requests: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: world.uploads.inspect(upload_id, REQUEST),
        lambda: world.uploads.append(upload_id, wrong, WholeBody(b"x"), REQUEST),
        lambda: world.uploads.open_download(upload_id, REQUEST),
        lambda: world.uploads.terminate(upload_id, REQUEST),
    )
    for request, status in zip(requests, REFUSALS[state], strict=True):
        if status is not None:
            assert await world.refuse(request()) == status
            assert await world.look(upload_id) is state


# -- bytes, hooks, duplicates --------------------------------------------------------------------


async def test_an_upload_is_resumed_and_finished_once(world: World) -> None:
    upload_id = await world.create(6, b"ab")
    await world.append(upload_id, 2, b"cd")
    assert await world.refuse(world.append(upload_id, 2, b"cd")) == 409
    await world.append(upload_id, 4, b"ef")
    found = await world.uploads.inspect(upload_id, REQUEST)
    assert await content_of(world.store, found) == b"abcdef"
    await world.uploads.hooks.wait_for([upload_id])
    assert world.events == [("finish", upload_id)]


async def test_a_length_is_declared_later_once(world: World) -> None:
    upload_id = await world.create(None)
    await world.append(upload_id, 0, b"ab")
    assert await world.refuse(world.append(upload_id, 2, b"", length=1)) == 400
    await world.append(upload_id, 2, b"c", length=4)
    assert await world.refuse(world.append(upload_id, 3, b"", length=5)) == 400
    await world.append(upload_id, 3, b"d")
    assert await world.look(upload_id) is S.FINISHED


async def test_a_chunk_counts_only_with_the_right_checksum(world: World) -> None:
    upload_id = await world.create(4)
    assert await world.refuse(world.append(upload_id, 0, b"ab", checksum="xx")) == 460
    assert (await world.uploads.load(upload_id)).offset == 0
    await world.append(upload_id, 0, b"ab", checksum="ab")
    assert (await world.uploads.load(upload_id)).offset == 2


async def test_more_bytes_than_the_length_are_refused(world: World) -> None:
    upload_id = await world.create(2)
    assert await world.refuse(world.append(upload_id, 0, b"abc")) == 413
    assert (await world.uploads.load(upload_id)).offset == 0


async def test_parts_are_joined_in_order_and_a_repeated_request_gets_the_same_final(
    world: World,
) -> None:
    parts = [await world.create(2, data, is_part=True) for data in (b"ab", b"cd")]
    final = await world.join(*parts, parts[0])
    assert await content_of(world.store, await world.uploads.load(final)) == b"abcdab"
    assert await world.join(*parts, parts[0]) == final
    assert await world.join(*reversed(parts)) != final


async def interrupted_final(
    world: World, monkeypatch: pytest.MonkeyPatch, interrupted: str = "join"
) -> str:
    """A final all of whose parts have their bytes."""

    async def fail(*_args: object, **_options: object) -> None:
        raise StorageError("as a crash")

    parts = [await world.create(2, is_part=True) for _ in range(2)]
    final = await world.join(*parts)
    await world.append(parts[0], 0, b"ab")
    with monkeypatch.context() as patched:
        if interrupted == "join":
            patched.setattr(world.store.joiner, "join", fail)
            await world.append(parts[1], 0, b"cd")
        else:
            patched.setattr(FileStore, "finish", fail)
            assert await world.refuse(world.append(parts[1], 0, b"cd")) == 500
        await world.uploads.drain()
    return final


@pytest.mark.parametrize("interrupted", ["join", "finish of a part"])
async def test_a_final_that_has_its_parts_is_joined_whatever_its_age(
    world: World, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    """After a crash nothing ran for longer than uploads live."""
    final = await interrupted_final(world, monkeypatch, interrupted)
    world.now += 8 * DAY
    assert await world.look(final) is S.WAITING
    report = await Sweep(world.uploads).check_all()
    assert (report.expired, report.failed) == (0, 0)
    assert await world.look(final) is S.FINISHED
    assert await content_of(world.store, await world.uploads.load(final)) == b"abcd"
    # No unfinished final keeps the parts, so they expire.
    assert (await Sweep(world.uploads).check_all()).expired == 2


@pytest.mark.parametrize("lacks", ["bytes of a part", "a part"])
async def test_a_final_that_lacks_something_expires(world: World, lacks: str) -> None:
    first, second = [await world.create(2, is_part=True) for _ in range(2)]
    final = await world.join(first, second)
    await world.append(first, 0, b"ab")
    if lacks == "a part":
        await world.uploads.terminate(second, REQUEST)
    else:
        await world.append(second, 0, b"c")
    # A sweep leaves a final alone that is being looked at for its first part.
    await world.uploads.drain()
    world.now += 8 * DAY
    assert await world.look(final) is S.EXPIRED
    await Sweep(world.uploads).check_all()
    assert await world.look(final) is S.ABSENT


async def test_a_final_that_is_refused_expires(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = await interrupted_final(world, monkeypatch)
    world.now += 8 * DAY
    world.refuses = True
    assert (await Sweep(world.uploads).check_all()).finished == 0
    assert await world.look(final) is S.ABSENT


async def test_hooks_choose_id_metadata_and_expiry(world: World) -> None:
    world.changes = Changes(id="study/1", metadata={"by": b"hook"}, expire_after=DAY)
    assert await world.create(4, b"ab") == "study/1"
    assert (await world.uploads.load("study/1")).info.metadata == {"by": b"hook"}
    assert await world.refuse(world.create(4)) == 409
    world.now += 1.5 * DAY
    assert await world.look("study/1") is S.EXPIRED


async def test_duplicates_are_refused_until_the_first_is_gone(world: World) -> None:
    first = await world.create(4, b"ab", name=b"scan")
    assert await world.refuse(world.create(4, name=b"scan")) == 409
    assert world.taken == {b"scan": first}
    await world.uploads.terminate(first, REQUEST)
    await world.uploads.hooks.wait_for([first])
    assert await world.create(4, name=b"scan") != first
    # A creation that is refused later gives its reservation back.
    assert await world.refuse(world.create(1, b"too long", name=b"other")) == 413
    assert b"other" not in world.taken


async def test_a_body_that_may_not_count_leaves_no_upload(world: World) -> None:
    command = Creation(2, {}, "", None, "", Content(2, sha256(b"xx"), False))
    assert await world.refuse(world.uploads.create(command, (), WholeBody(b"ab"), REQUEST)) == 460
    assert await world.look(world.last_id) is S.ABSENT


async def test_a_sweep_stops_if_locks_go_away_before_it_tidies_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tidy(**_named: object) -> int:
        raise LocksUnavailable("no Redis")

    monkeypatch.setattr(world.store, "tidy", tidy)
    with pytest.raises(SweepStopped, match="no Redis"):
        await Sweep(world.uploads).check_all()
