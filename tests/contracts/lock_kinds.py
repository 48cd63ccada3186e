"""The locks that must fulfil the contract. Add a new kind to `LOCKS`, and the whole suite runs on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from pathlib import Path

import pytest

from tests.support.redis import Kind, RedisServer
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

Both = tuple[Locks, Locks]
"""Two clients of the same locks: those of two processes, if the kind supports several."""


@asynccontextmanager
async def memory(_tmp_path: Path) -> AsyncIterator[Both]:
    locks = MemoryLocks()
    yield locks, locks
    await locks.stop()


@asynccontextmanager
async def in_redis(
    tmp_path: Path, *, kind: Kind = "valkey", processes: int = 2, shares_files: bool = False
) -> AsyncIterator[Both]:
    async with AsyncExitStack() as stack:
        stack.enter_context(by_messages_alone())
        server = stack.enter_context(RedisServer(tmp_path / "redis", kind=kind))
        found: list[Locks] = []
        for _ in range(processes):
            redis_client = RedisClient(server.url, timeout=TIMEOUT)
            await redis_client.start()
            stack.push_async_callback(redis_client.stop)
            if shares_files:
                locks: Locks = shared(redis_client, tmp_path / "locks")
            else:
                locks = RedisLocks(redis_client, lease=LEASE)
            stack.push_async_callback(locks.stop)
            found.append(locks)
        yield found[0], found[-1]


LOCKS: dict[str, Callable[[Path], AbstractAsyncContextManager[Both]]] = {
    "memory": memory,
    "one process": partial(in_redis, processes=1),
    "two on redis": partial(in_redis, kind="redis"),
    "two on valkey": in_redis,
    "two that share files": partial(in_redis, shares_files=True),
}


def shared(redis_client: RedisClient, path: Path, *, lease: float = LEASE) -> FallbackLocks:
    """Locks that survive an outage of Redis. path: the file whose bytes are locked."""
    granting = RedisLocks(redis_client, lease=lease, retry_seconds=0)
    directory = path.with_name("epochs")
    directory.mkdir(exist_ok=True)
    epochs = Epochs(str(directory), is_local=True)
    return FallbackLocks(granting, OfdLocks(str(path)), epochs, redis_client)


@contextmanager
def by_messages_alone() -> Iterator[None]:
    """Make waiters poll too rarely for any test, without being dropped from the queue for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis, "_MAX_POLL_SECONDS", LEASE)
        spans = f"{FORGOTTEN * 1000:.0f}, {FORGOTTEN * 3000:.0f}\n"
        longer = f"{LEASE * 3000:.0f}, {LEASE * 9000:.0f}\n"
        for name, script in (("ACQUIRE", ACQUIRE), ("RENEW", RENEW), ("RELEASE", RELEASE)):
            assert spans in script.source
            changed = Script(script.name, script.source.replace(spans, longer))
            patch.setattr(redis, name, changed)
        yield
