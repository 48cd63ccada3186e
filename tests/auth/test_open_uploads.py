"""How many uploads an owner has open, where there are more than are looked up at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.redis import RedisServer
from tusd_py.auth.quota import OpenUploads
from tusd_py.protocol.errors import ProtocolError
from tusd_py.redis import State

LIMIT = 500


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def state(redis: RedisServer) -> AsyncIterator[State]:
    state = State(redis.url, timeout=30.0)
    await state.start()
    yield state
    await state.stop()


class Store:
    """Which uploads are unfinished; those that it does not have are being created."""

    def __init__(self) -> None:
        self.is_open: dict[str, bool] = {}
        self.looked_up = 0

    async def look_up(self, upload_id: str) -> bool | None:
        self.looked_up += 1
        await asyncio.sleep(0)
        return self.is_open.get(upload_id)


async def filled(state: State, store: Store) -> OpenUploads:
    uploads = OpenUploads(state)
    for number in range(LIMIT):
        await uploads.enter("alice", f"x{number}", LIMIT, store.look_up)
        store.is_open[f"x{number}"] = True
    return uploads


@pytest.mark.parametrize("closed", [0, 49, 50, 199, 200, 201, LIMIT - 1])
async def test_one_that_is_finished_makes_room_wherever_it_stands(
    state: State, closed: int
) -> None:
    store = Store()
    uploads = await filled(state, store)
    with pytest.raises(ProtocolError):
        await uploads.enter("alice", "too-many", LIMIT, store.look_up)
    store.is_open[f"x{closed}"] = False
    await uploads.enter("alice", "next", LIMIT, store.look_up)
    store.is_open["next"] = True
    with pytest.raises(ProtocolError):
        await uploads.enter("alice", "too-many", LIMIT, store.look_up)


async def test_creations_in_progress_hide_nothing_behind_them(state: State) -> None:
    store = Store()
    uploads = OpenUploads(state)
    for number in range(LIMIT):
        await uploads.enter("alice", f"x{number}", LIMIT, store.look_up)
    store.is_open[f"x{LIMIT - 1}"] = False
    await uploads.enter("alice", "next", LIMIT, store.look_up)


async def test_of_many_at_once_as_many_come_in_as_there_is_room(state: State) -> None:
    store = Store()
    uploads = await filled(state, store)
    for number in range(300, 310):
        store.is_open[f"x{number}"] = False

    async def enter(name: str) -> bool:
        try:
            await uploads.enter("alice", name, LIMIT, store.look_up)
        except ProtocolError:
            return False
        store.is_open[name] = True
        return True

    found = await asyncio.gather(*(enter(f"y{number}") for number in range(15)))
    assert sum(found) == 10


async def test_room_is_found_without_a_look_at_all(state: State) -> None:
    store = Store()
    uploads = await filled(state, store)
    for number in range(100):
        store.is_open[f"x{number}"] = False
    store.looked_up = 0
    await uploads.enter("alice", "next", LIMIT, store.look_up)
    assert store.looked_up < 100
