"""Directories with many known uploads, one for each server, kept for a run.

Up to some tens of thousands are created over HTTP. A million are made of one that was: its files again under other names, with
the other id inside, as every server here keeps an upload in files that are named by its id.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from bench.servers import Server

_BY_HTTP = 50_000
_CONNECTIONS = 32

Creator = Callable[[int, int], list[str]]
"""Creates so many uploads over so many connections; returns their paths."""


class Seeds:
    """root: where the directories are."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths: dict[tuple[str, int], list[str]] = {}

    def directory(self, server: Server, count: int) -> Path:
        """Where this server keeps its `count` uploads."""
        return self._root / f"{server.name}-{count}"

    def paths(self, server: Server, count: int) -> list[str]:
        """The uploads' paths."""
        return self._paths[server.name, count]

    def make(self, server: Server, count: int, create: Creator) -> None:
        """Makes the uploads, unless they are there. create: see Creator; the server does not run meanwhile."""
        if (server.name, count) in self._paths:
            return
        directory = self.directory(server, count)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        by_http = min(count, _BY_HTTP if count <= _BY_HTTP else 1)
        paths = create(by_http, min(_CONNECTIONS, by_http))
        if by_http < count:
            paths = _multiply(directory, paths[0], count)
        self._paths[server.name, count] = paths

    def close(self) -> None:
        """Removes everything."""
        shutil.rmtree(self._root, ignore_errors=True)


def _multiply(directory: Path, path: str, count: int) -> list[str]:
    parent, _, known = path.rpartition("/")
    originals = {
        found.name: found.read_bytes() for found in directory.iterdir() if known in found.name
    }
    paths = [path]
    for _ in range(count - 1):
        fresh = os.urandom(len(known) // 2 + 1).hex()[: len(known)]
        for name, content in originals.items():
            copied = content.replace(known.encode(), fresh.encode())
            (directory / name.replace(known, fresh)).write_bytes(copied)
        paths.append(f"{parent}/{fresh}")
    return paths
