"""The count of an owner's open uploads, with more of them than are looked up at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.redis import RedisServer
from tusd_py.auth.quota import OpenUploads
from tusd_py.protocol.errors import ProtocolError
from tusd_py.redis import RedisClient

LIMIT = 500


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def redis_client(redis: RedisServer) -> AsyncIterator[RedisClient]:
    redis_client = RedisClient(redis.url, timeout=30.0)
    await redis_client.start()
    yield redis_client
    await redis_client.stop()


class Store:
    """Which uploads are unfinished; those that it does not have are being created."""

    def __init__(self) -> None:
        self.is_open: dict[str, bool] = {}
        self.looked_up = 0

    async def look_up(self, upload_id: str) -> bool | None:
        self.looked_up += 1
        await asyncio.sleep(0)
        return self.is_open.get(upload_id)


async def filled(redis_client: RedisClient, store: Store) -> OpenUploads:
    uploads = OpenUploads(redis_client)
    for number in range(LIMIT):
        await uploads.enter("alice", f"x{number}", LIMIT, store.look_up)
        store.is_open[f"x{number}"] = True
    return uploads


@pytest.mark.parametrize("closed", [0, 49, 50, 199, 200, 201, LIMIT - 1])
async def test_one_that_is_finished_makes_room_wherever_it_stands(
    redis_client: RedisClient, closed: int
) -> None:
    store = Store()
    uploads = await filled(redis_client, store)
    with pytest.raises(ProtocolError):
        await uploads.enter("alice", "too-many", LIMIT, store.look_up)
    store.is_open[f"x{closed}"] = False
    await uploads.enter("alice", "next", LIMIT, store.look_up)
    store.is_open["next"] = True
    with pytest.raises(ProtocolError):
        await uploads.enter("alice", "too-many", LIMIT, store.look_up)


async def test_creations_in_progress_hide_nothing_behind_them(redis_client: RedisClient) -> None:
    store = Store()
    uploads = OpenUploads(redis_client)
    for number in range(LIMIT):
        await uploads.enter("alice", f"x{number}", LIMIT, store.look_up)
    store.is_open[f"x{LIMIT - 1}"] = False
    await uploads.enter("alice", "next", LIMIT, store.look_up)


async def test_of_many_at_once_as_many_come_in_as_there_is_room(redis_client: RedisClient) -> None:
    store = Store()
    uploads = await filled(redis_client, store)
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


async def test_room_is_found_without_a_look_at_all(redis_client: RedisClient) -> None:
    store = Store()
    uploads = await filled(redis_client, store)
    for number in range(100):
        store.is_open[f"x{number}"] = False
    store.looked_up = 0
    await uploads.enter("alice", "next", LIMIT, store.look_up)
    assert store.looked_up < 100
