"""A gibibyte through other projects' clients, with a kill -9 in the middle: the same bytes."""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clients.content import MIB, SourceFile, assert_stored, write_source
from tests.clients.tus_js import TusJsClient
from tests.clients.tuspy import uploader_of
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.server import ServerProcess
from tests.support.waiting import wait_until

GIB = 1024 * MIB

pytestmark = [pytest.mark.xdist_group("crash"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SourceFile]:
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as directory:
        yield write_source(Path(directory) / "big.bin", GIB)


def kill_half_way(server: ServerProcess, proxy: FaultProxy | None = None) -> None:
    """Waits until half of the file has arrived, kills the server, and starts it again; then nothing is in the way."""

    def stored() -> int:
        return max(entry.stat().st_size for entry in server.upload_dir.iterdir())

    wait_until(lambda: stored() >= GIB // 2, "half of the file", timeout=120)
    server.kill9()
    assert stored() < GIB, "it was all there before the kill"
    if proxy is not None:
        proxy.heal()
    server.restart()


class HeldFile(io.FileIO):
    """A file whose last quarter cannot be read until `go_on` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.go_on = threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= GIB * 3 // 4:
            self.go_on.wait(120)
        return super().read(size)


def test_tuspy(room: Path, source: SourceFile) -> None:
    # It gets no further before the kill, however late that is.
    with (
        ServerProcess(room / "uploads") as server,
        HeldFile(source.path) as file,
        ThreadPoolExecutor(1) as background,
    ):
        uploader = uploader_of(server.url, file, chunk_size=64 * MIB, retries=600, retry_delay=0.1)
        upload = background.submit(uploader.upload)
        kill_half_way(server)
        file.go_on.set()
        upload.result(120)
        assert_stored(server, uploader.url, source)


def test_tus_js_client(room: Path, source: SourceFile, tus_js_installed: None) -> None:
    """In one PATCH, and after the kill in another one."""
    with ServerProcess(room / "uploads") as server:
        # It gets no further before the kill, however late that is.
        with (
            FaultProxy(server.address, default=Plan(up=Way(stall_after=GIB * 3 // 4))) as proxy,
            TusJsClient(
                {
                    "source": {"kind": "file", "path": str(source.path)},
                    "options": {"endpoint": proxy.url(), "retryDelays": [0, *[100] * 600]},
                }
            ) as client,
        ):
            kill_half_way(server, proxy)
            url = client.succeed(timeout=120)
        assert client.requests() == [("POST", 201), ("HEAD", 200), ("PATCH", 204)]
        assert_stored(server, url, source)
