"""Fixtures: a Redis of each kind, and the duplicate index in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.redis import KINDS, Kind, RedisServer
from tests.support.server import ServerProcess
from tusd_py.redis import RedisClient
from tusd_py.redis.duplicate_index import DuplicateIndex


@pytest.fixture(scope="module", params=KINDS)
def shared_redis(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """One server for a module; tests take `redis`, which empties it for them."""
    kind: Kind = request.param
    with RedisServer(tmp_path_factory.mktemp(kind), kind=kind) as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    """A server that remembers nothing. Do not stop it."""
    shared_redis.command("FLUSHALL")
    return shared_redis


@pytest.fixture
async def redis_client(redis: RedisServer) -> AsyncIterator[RedisClient]:
    """The way to it."""
    connected = RedisClient(redis.url, timeout=20)
    await connected.start()
    yield connected
    await connected.stop()


@pytest.fixture
def index(redis_client: RedisClient) -> DuplicateIndex:
    """The index of duplicates in it."""
    return DuplicateIndex(redis_client)


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A server of the test's own, to be stopped and started; it keeps its data."""
    with RedisServer(tmp_path / "redis", persistent=True) as server:
        yield server


@pytest.fixture
def make_server(make_server: MakeServer) -> MakeServer:
    """Like the general `make_server`, but with the duplicate check on, as it is by default."""

    def make(
        *flags: str,
        env: Mapping[str, str] | None = None,
        upload_dir: Path | None = None,
        launch: bool = False,
    ) -> ServerProcess:
        # A client does not count as gone where a busy machine holds up the test.
        default = {"TUSD_DUPLICATES": "", "TUSD_DUPLICATES_PENDING_GRACE": "60s"}
        return make_server(
            *flags, env={**default, **(env or {})}, upload_dir=upload_dir, launch=launch
        )

    return make
