"""Locks in Redis, alone and with the file system behind them. What every kind of lock does is in `tests/contracts/`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.contracts.lock_kinds import LEASE, TIMEOUT, by_messages_alone, shared
from tests.support.redis import KINDS, Kind, RedisServer
from tusd_py.locks import redis
from tusd_py.locks.fallback import FallbackLocks
from tusd_py.locks.redis import RedisLocks
from tusd_py.redis import RedisClient

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


@pytest.fixture(name="by_messages_alone")
def _by_messages_alone() -> Iterator[None]:
    """Make waiters poll too rarely for any test."""
    with by_messages_alone():
        yield


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
