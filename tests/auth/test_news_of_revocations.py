"""Polling of revocations: only new ones are read, or all if necessary, and old ones are forgotten."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.support.redis import RedisServer
from tusd_py.auth import revocation
from tusd_py.auth.revocation import Revocations
from tusd_py.redis import RedisClient

VERSION, LOG, ALL = "tusd:{revoked}:version", "tusd:{revoked}:log", "tusd:{revoked}:all"


class Recording(Revocations):
    """Records how many revocations each answer of Redis had."""

    def __init__(self, redis_client: RedisClient, *, kept: float = 1e6) -> None:
        super().__init__(redis_client, on_change=lambda: None, ttl=kept)
        self.sizes: list[int] = []

    def _learn(self, found: dict[str, float]) -> None:
        self.sizes.append(len(found))
        super()._learn(found)

    def knows(self, *uploads: str) -> bool:
        return all(self.has_upload(upload) for upload in uploads)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


Make = Callable[[], Awaitable[Recording]]


@pytest.fixture
async def make(redis: RedisServer) -> AsyncIterator[Make]:
    """A process that has read the list; it looks when told to."""
    redis_clients: list[RedisClient] = []

    async def made() -> Recording:
        redis_client = RedisClient(redis.url, timeout=30.0)
        redis_clients.append(redis_client)
        await redis_client.start()
        found = Recording(redis_client)
        await found._refresh()
        return found

    yield made
    for redis_client in redis_clients:
        await redis_client.stop()


async def test_only_what_is_new_is_read(make: Make) -> None:
    writer, reader = await make(), await make()
    for number in range(300):
        await writer.revoke_upload(f"x{number}")
    await reader._refresh()
    reader.sizes.clear()
    await writer.revoke_upload("y")
    await writer.revoke_owner("alice")
    await reader._refresh()
    await reader._refresh()
    assert reader.sizes == [2]
    assert reader.knows("y", "x0", "x299")
    assert reader.owner_since("alice") is not None
    late = await make()
    assert late.sizes == [302]


async def test_one_that_is_revoked_again_is_told_again(make: Make) -> None:
    writer, reader = await make(), await make()
    await writer.revoke_owner("alice")
    await reader._refresh()
    before = reader.owner_since("alice")
    await writer.revoke_owner("alice")
    await reader._refresh()
    after = reader.owner_since("alice")
    assert before is not None
    assert after is not None
    assert after > before


async def test_who_missed_more_than_the_log_has_reads_all(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocation, "_LOG_LENGTH", 5)
    writer, behind, close = await make(), await make(), await make()
    await writer.revoke_upload("first")
    for each in (behind, close):
        await each._refresh()
    for number in range(6):
        await writer.revoke_upload(f"x{number}")
        if number == 0:
            await close._refresh()
    close.sizes.clear()
    behind.sizes.clear()
    await behind._refresh()
    await close._refresh()
    assert (behind.sizes, close.sizes) == ([7], [5])
    assert behind.knows("first", *(f"x{number}" for number in range(6)))


async def test_what_an_older_version_writes_is_read(make: Make, redis: RedisServer) -> None:
    """An older version adds to the list, and sets a version in its own format."""
    writer, reader = await make(), await make()
    await writer.revoke_upload("a")
    await reader._refresh()
    redis.command("ZADD", ALL, time.time() * 1000, "u:older")
    redis.command("SET", VERSION, "0123456789abcdef")
    # One that looks between, and one that does not before the next is written.
    await writer._refresh()
    await writer.revoke_upload("b")
    await reader._refresh()
    assert reader.knows("a", "older", "b")
    assert writer.knows("a", "older", "b")


async def test_a_redis_that_was_emptied_or_fell_back_is_told_again(
    make: Make, redis: RedisServer
) -> None:
    writer, reader = await make(), await make()
    await writer.revoke_upload("a")
    await reader._refresh()
    kept = {key: redis.command("DUMP", key) for key in (ALL, VERSION, LOG)}
    await writer.revoke_upload("b")
    await reader._refresh()
    # A replica that had not heard of it.
    for key, value in kept.items():
        assert isinstance(value, bytes)
        redis.command("RESTORE", key, 0, value, "REPLACE")
    other = await make()
    assert not other.knows("b")
    await other.revoke_upload("c")
    await reader._refresh()
    assert reader.knows("a", "b", "c")
    await other._refresh()
    assert other.knows("a", "b", "c")
    redis.command("FLUSHALL")
    for each in (reader, other):
        await each._refresh()
    late = await make()
    assert late.knows("a", "b", "c")


async def test_the_first_revocation_survives_a_redis_that_is_emptied_at_once(
    make: Make, redis: RedisServer
) -> None:
    writer = await make()
    await writer.revoke_upload("a")
    redis.command("FLUSHALL")
    await writer._refresh()
    assert (await make()).knows("a")


async def test_what_no_token_can_outlive_is_dropped(redis: RedisServer) -> None:
    redis_client = RedisClient(redis.url, timeout=30.0)
    await redis_client.start()
    found = Recording(redis_client, kept=3600.0)
    await found._refresh()
    old = (time.time() - 3601) * 1000
    redis.command("ZADD", ALL, old, "u:old", time.time() * 1000, "u:new")
    redis.command("SET", VERSION, "anything")
    await found._refresh()
    assert found.knows("old", "new")
    await found._prune()
    assert (found.knows("new"), found.knows("old")) == (True, False)
    assert redis.command("ZRANGE", ALL, 0, -1) == [b"u:new"]
    await redis_client.stop()
