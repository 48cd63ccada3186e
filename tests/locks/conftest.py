"""Locks of every kind, each with a second client of the same locks, as another process would be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.redis import KINDS, Kind, RedisServer
from tusd_py.locks import redis
from tusd_py.locks.base import Locks
from tusd_py.locks.epochs import Epochs
from tusd_py.locks.fallback import FallbackLocks
from tusd_py.locks.lua import ACQUIRE, FORGOTTEN, RELEASE, RENEW
from tusd_py.locks.memory import MemoryLocks
from tusd_py.locks.ofd import OfdLocks
from tusd_py.locks.redis import RedisLocks
from tusd_py.redis import RedisClient, Script

LEASE = 60.0
"""Seconds: nothing is lost, nor renewed, because a test stood still."""
TIMEOUT = 20.0
"""Seconds, of a command to Redis. Who stops it gives less."""

MakeLocks = Callable[..., Awaitable[RedisLocks]]
MakeShared = Callable[..., Awaitable[FallbackLocks]]


@pytest.fixture(params=KINDS)
def redis_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis server for this test, of each kind."""
    kind: Kind = request.param
    with RedisServer(tmp_path / "redis", kind=kind) as server:
        yield server


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renew leases much earlier than needed."""
    monkeypatch.setattr(redis, "_RENEWALS", 40)


@pytest.fixture
def by_messages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make waiters poll too rarely for any test, without being dropped from the queue for it."""
    monkeypatch.setattr(redis, "_MAX_POLL_SECONDS", LEASE)
    spans = f"{FORGOTTEN * 1000:.0f}, {FORGOTTEN * 3000:.0f}\n"
    longer = f"{LEASE * 3000:.0f}, {LEASE * 9000:.0f}\n"
    for name, script in (("ACQUIRE", ACQUIRE), ("RENEW", RENEW), ("RELEASE", RELEASE)):
        assert spans in script.source
        changed = Script(script.name, script.source.replace(spans, longer))
        monkeypatch.setattr(redis, name, changed)


@pytest.fixture
async def make_locks(redis_server: RedisServer) -> AsyncIterator[MakeLocks]:
    """``await make_locks(lease=…)``: the locks of a separate process, but in this event loop."""
    async with AsyncExitStack() as stack:

        async def make(
            *, lease: float = LEASE, timeout: float = TIMEOUT, retry_seconds: float = 60.0
        ) -> RedisLocks:
            redis_client = RedisClient(redis_server.url, timeout=timeout)
            await redis_client.start()
            stack.push_async_callback(redis_client.stop)
            locks = RedisLocks(redis_client, lease=lease, retry_seconds=retry_seconds)
            stack.push_async_callback(locks.stop)
            return locks

        yield make


@pytest.fixture
async def make_shared(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[MakeShared]:
    """``await make_shared(lease=…)``: the locks of a separate process that survive an outage of Redis."""
    async with AsyncExitStack() as stack:

        async def make(*, lease: float = LEASE, timeout: float = TIMEOUT) -> FallbackLocks:
            redis_client = RedisClient(redis_server.url, timeout=timeout)
            await redis_client.start()
            stack.push_async_callback(redis_client.stop)
            locks = shared(redis_client, tmp_path / "locks", lease=lease)
            stack.push_async_callback(locks.stop)
            return locks

        yield make


def shared(redis_client: RedisClient, path: Path, *, lease: float = LEASE) -> FallbackLocks:
    granting = RedisLocks(redis_client, lease=lease, retry_seconds=0)
    directory = path.with_name("epochs")
    directory.mkdir(exist_ok=True)
    epochs = Epochs(str(directory), is_local=True)
    return FallbackLocks(granting, OfdLocks(str(path)), epochs, redis_client)


@pytest.fixture(
    params=["memory", "one process", *(f"two on {kind}" for kind in KINDS), "two that share files"]
)
async def both(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[Locks, Locks]]:
    """Two clients of the same locks."""
    kind: str = request.param
    managers: list[RedisLocks] | list[FallbackLocks]
    if kind == "memory":
        locks = MemoryLocks()
        yield locks, locks
        await locks.stop()
        return
    server = RedisServer(tmp_path / "redis", kind="redis" if kind == "two on redis" else "valkey")
    with server:
        redis_clients = [
            RedisClient(server.url, timeout=TIMEOUT)
            for _ in range(1 if kind == "one process" else 2)
        ]
        for redis_client in redis_clients:
            await redis_client.start()
        if kind == "two that share files":
            managers = [shared(redis_client, tmp_path / "locks") for redis_client in redis_clients]
        else:
            managers = [RedisLocks(redis_client, lease=LEASE) for redis_client in redis_clients]
        yield managers[0], managers[-1]
        for manager in managers:
            await manager.stop()
        for redis_client in redis_clients:
            await redis_client.stop()


@pytest.fixture
def here(both: tuple[Locks, Locks]) -> Locks:
    return both[0]


@pytest.fixture
def there(both: tuple[Locks, Locks]) -> Locks:
    return both[1]
