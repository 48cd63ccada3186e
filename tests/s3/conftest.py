"""Object stores for the tests in this folder: a process of each kind for a test process, a prefix of keys for a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from tests.s3 import servers
from tests.s3.servers import BUCKET, Kind, S3Server
from tests.support.requirements import refuse
from tusd_py.storage.s3.aiobotocore_store import Bucket
from tusd_py.storage.s3.bucket import S3Options
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.object_store import MIN_PART_BYTES
from tusd_py.storage.s3.requests import ObjectStore
from tusd_py.storage.s3.store import S3Store


def shared(kind: Kind) -> S3Server:
    """The server of a kind; skips the test where it is not installed, in CI fails it."""
    if not servers.is_installed(kind):
        refuse(f"{kind} is not installed (CONTRIBUTING.md)")
    return servers.shared(kind)


@pytest.fixture(params=servers.KINDS)
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each kind of server in turn."""
    kind: Kind = request.param
    return shared(kind)


@pytest.fixture
def seaweedfs() -> S3Server:
    """The first kind alone, for what does not depend on the store."""
    return shared("seaweedfs")


@pytest.fixture
def prefix() -> str:
    """Of the keys of one test."""
    return f"{uuid4().hex}/"


class OpenStore:
    """Opens clients that are closed with the test. `endpoint`: of a server, or of a proxy before one."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def __call__(
        self,
        endpoint: str,
        *,
        name: str = BUCKET,
        repeat_seconds: float = 20.0,
        response_seconds: float = 60.0,
        requests: int = 64,
        unsigned_bodies: bool = False,
    ) -> ObjectStore:
        bucket = Bucket(
            name,
            endpoint=endpoint,
            path_style=True,
            repeat_seconds=repeat_seconds,
            response_seconds=response_seconds,
            requests=requests,
            unsigned_bodies=unsigned_bodies,
        )
        return await self._stack.enter_async_context(ObjectStore(bucket))


@pytest.fixture
async def open_store(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenStore]:
    """``await open_store(server.endpoint)``."""
    for name, value in servers.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    async with AsyncExitStack() as stack:
        yield OpenStore(stack)


class Opened:
    """Stores on one prefix of a bucket, each as of another process, that are stopped with the test."""

    def __init__(self, stack: AsyncExitStack, endpoint: str, prefix: str) -> None:
        self.layout = Layout(prefix, prefix)
        self._stack = stack
        self._endpoint = endpoint

    def __call__(self, *, repeat_seconds: float = 20.0, **options: float | bool | str) -> S3Store:
        chosen = {"part_bytes": MIN_PART_BYTES, **options}
        bucket = Bucket(
            BUCKET, endpoint=self._endpoint, path_style=True, repeat_seconds=repeat_seconds
        )
        store = S3Store(
            ObjectStore(bucket),
            S3Options(BUCKET, self.layout, **chosen),  # type: ignore[arg-type]
        )
        self._stack.push_async_callback(store.stop)
        return store

    async def keys(self) -> list[str]:
        """All keys on the prefix, without it."""
        objects = self().objects
        start = len(self.layout.info_prefix)
        return [
            each.key[start:]
            async for page in objects.list(self.layout.info_prefix)
            for each in page
        ]


@pytest.fixture
async def opened(
    seaweedfs: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Opened]:
    """Stores without a proxy before the bucket."""
    for name, value in servers.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    async with AsyncExitStack() as stack:
        yield Opened(stack, seaweedfs.endpoint, prefix)
