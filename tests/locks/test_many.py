"""Locks of many uploads at a time in Redis, for sweeps."""

from __future__ import annotations

import asyncio

import pytest

from tests.locks.conftest import MakeLocks, MakeShared
from tests.support.redis import RedisServer
from tusd_py.locks.base import LocksUnavailable, LockTimeout

MANY = [f"u{number}" for number in range(100)]


async def test_many_cost_two_commands_each_and_few_round_trips(
    make_locks: MakeLocks, redis_server: RedisServer
) -> None:
    # Not renewed before the test is over.
    locks = await make_locks(lease=3600)
    async with locks.try_acquire_many(["first"]):
        pass
    redis_server.reset_counts()
    async with locks.try_acquire_many(MANY) as leases:
        assert len(leases) == len(MANY)
    assert redis_server.counts()["evalsha"] == 2 * len(MANY)


@pytest.mark.parametrize("kind", ["redis", "shared"])
async def test_without_redis_there_are_none_and_nothing_stays_locked(
    make_locks: MakeLocks, make_shared: MakeShared, redis_server: RedisServer, kind: str
) -> None:
    make = make_locks if kind == "redis" else make_shared
    here, there = await make(lease=3.0, timeout=1.0), await make(lease=3.0, timeout=1.0)
    redis_server.pause()
    with pytest.raises(LocksUnavailable):
        async with here.try_acquire_many(MANY):
            raise AssertionError
    redis_server.resume()
    # Those whose fate was not known are let go of as soon as Redis is back, or run out.
    lease = None
    async with asyncio.timeout(60):
        while lease is None:
            try:
                lease = await there.acquire("u1", timeout=5, request_release=False)
            except (LocksUnavailable, LockTimeout):
                await asyncio.sleep(0.05)
    await lease.release()


async def test_one_that_is_held_without_redis_is_not_free_when_redis_is_back(
    make_shared: MakeShared, redis_server: RedisServer
) -> None:
    here, there = await make_shared(), await make_shared()
    redis_server.kill9()
    lease = await here.acquire("u1", timeout=10)
    redis_server.start()
    leases: list[str] | None = None
    async with asyncio.timeout(60):
        while leases is None:
            try:
                async with there.try_acquire_many(MANY) as free:
                    leases = list(free)
            except LocksUnavailable:
                await asyncio.sleep(0.05)
    assert set(leases) == set(MANY) - {"u1"}
    assert lease.is_held()
    await lease.release()
