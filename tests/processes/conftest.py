"""A server of three processes, and their observation from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of
from tests.support.waiting import wait_until


class Workers:
    """The processes behind one port."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.tus = Tus(server)

    def pids(self) -> list[int]:
        """The processes that serve, as the system knows them."""
        children = Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children")
        return [pid for pid in map(int, children.read_text().split()) if is_server(pid)]

    def holder_of(self, path: str) -> int:
        """The process that has the upload's data file open, which is the one that writes to it."""
        file = self.server.data_file(id_of(path))
        found: list[int] = []

        def seen() -> bool:
            found[:] = [pid for pid in self.pids() if file in _open_files(pid)]
            return bool(found)

        wait_until(seen, f"somebody to open {file.name}")
        return found[0]


def is_server(pid: int) -> bool:
    """True if a process runs and belongs to a server."""
    try:
        return b"tusd_py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _open_files(pid: int) -> list[Path]:
    files: list[Path] = []
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                files.append(descriptor.readlink())
            except (FileNotFoundError, ProcessLookupError):
                continue
    except (FileNotFoundError, ProcessLookupError):
        pass
    return files


MakeWorkers = Callable[..., Workers]


@pytest.fixture
def make_workers(tmp_path: Path) -> Iterator[MakeWorkers]:
    """`make_workers(*flags)`: a server of three processes on a directory of its own."""
    started: list[ServerProcess] = []

    def make(*flags: str) -> Workers:
        # What runs out where nobody asks who waits is far longer than what is asked for.
        env = {"TUSD_LOCK_LEASE": "60s"}
        server = ServerProcess(tmp_path / "uploads", "--workers", "3", *flags, env=env).start()
        started.append(server)
        return Workers(server)

    yield make
    for server in started:
        if server.running:
            server.terminate()
        server.close()
