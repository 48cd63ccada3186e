"""Stores and locks of each kind, for the suites that all of them must pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.contracts.lock_kinds import LOCKS, Both
from tests.contracts.places import PLACES, Place
from tusd_py.locks.base import Locks
from tusd_py.storage.base import Joiner, Outbox, Store

OpenStore = Callable[[], Awaitable[Store]]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    name: str = request.param
    with PLACES[name](tmp_path) as found:
        yield found


@pytest.fixture
async def open_store(place: Place) -> AsyncIterator[OpenStore]:
    """``await open_store()``: another store on the same place, as of another process."""
    async with AsyncExitStack() as stack:

        async def make() -> Store:
            store = place.store()
            await asyncio.to_thread(store.open, "shared")
            stack.push_async_callback(store.stop)
            return store

        yield make


@pytest.fixture
async def store(open_store: OpenStore) -> Store:
    return await open_store()


@pytest.fixture
async def other(open_store: OpenStore) -> Store:
    """The store as another process sees it."""
    return await open_store()


@pytest.fixture
def joiner(store: Store) -> Joiner:
    if store.joiner is None:
        pytest.skip("this store does not join uploads")
    return store.joiner


@pytest.fixture
def verifying(store: Store) -> Store:
    if not store.verifies_chunks:
        pytest.skip("this store does not verify chunks")
    return store


@pytest.fixture
def outbox(store: Store) -> Outbox:
    return store.outbox


@pytest.fixture(params=LOCKS)
async def both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Both]:
    name: str = request.param
    async with LOCKS[name](tmp_path) as found:
        yield found


@pytest.fixture
def here(both: Both) -> Locks:
    return both[0]


@pytest.fixture
def there(both: Both) -> Locks:
    return both[1]
