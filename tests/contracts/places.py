"""The stores that must fulfil the contract. Add a new one to `PLACES`, and the whole suite runs on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from tusd_py.storage.base import Store
from tusd_py.storage.file.store import FileStore


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


PLACES: dict[str, Callable[[Path], AbstractContextManager[Place]]] = {"file": directory}
"""By name: makes a place of its own for a test, which may use a temporary directory."""
