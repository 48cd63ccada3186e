"""The stores that must fulfil the contract. Add a new one to `PLACES`, and the whole suite runs on it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest

from tests.s3 import servers
from tests.s3.servers import BUCKET, Kind, S3Server
from tests.support.requirements import refuse
from tusd_py.storage.base import Store
from tusd_py.storage.file.store import FileStore
from tusd_py.storage.s3.aiobotocore_store import Bucket
from tusd_py.storage.s3.bucket import S3Options
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.requests import ObjectStore
from tusd_py.storage.s3.store import S3Store


class Place(Protocol):
    """The location of a store. Several stores in one place behave like those of several processes."""

    def store(self) -> Store:
        """A store on this place, not opened."""

    def contents(self) -> Mapping[str, bytes]:
        """Everything that lies there, by name, without what a running process keeps for itself."""


class Directory:
    """The place of a `FileStore`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def store(self) -> FileStore:
        return FileStore(self._root)

    def contents(self) -> Mapping[str, bytes]:
        found: dict[str, bytes] = {}
        for directory, _, names in os.walk(self._root):
            for name in names:
                path = Path(directory, name)
                if path.is_symlink():
                    found[str(path)] = os.readlink(path).encode()
                elif name not in ("server.lock", "session"):
                    found[str(path)] = path.read_bytes()
        return found


@contextmanager
def directory(tmp_path: Path) -> Iterator[Place]:
    yield Directory(tmp_path / "uploads")


class Prefix:
    """The place of an `S3Store`: a prefix of its own in the bucket that all tests share."""

    def __init__(self, server: S3Server) -> None:
        self._prefix = f"{uuid4().hex}/"
        self._bucket = Bucket(BUCKET, endpoint=server.endpoint, path_style=True, repeat_seconds=20)

    def store(self) -> Store:
        layout = Layout(self._prefix, self._prefix)
        return S3Store(ObjectStore(self._bucket), S3Options(BUCKET, layout))

    def contents(self) -> Mapping[str, bytes]:
        found: dict[str, bytes] = {}

        async def read() -> None:
            async with ObjectStore(self._bucket) as objects:
                async for page in objects.list(self._prefix):
                    for listed in page:
                        found[listed.key] = (await objects.read(listed.key, limit=1 << 30))[1]

        # In a thread, as the test's own event loop is running.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, read()).result()
        return found


@contextmanager
def prefix(kind: Kind, _tmp_path: Path) -> Iterator[Place]:
    if not servers.is_installed(kind):
        refuse(f"{kind} is not installed (CONTRIBUTING.md)")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in servers.ENVIRONMENT.items():
            patch.setenv(name, value)
        yield Prefix(servers.shared(kind))


PLACES: dict[str, Callable[[Path], AbstractContextManager[Place]]] = {
    "file": directory,
    "seaweedfs": partial(prefix, "seaweedfs"),
    "versitygw": partial(prefix, "versitygw"),
}
"""By name: makes a place of its own for a test, which may use a temporary directory."""
