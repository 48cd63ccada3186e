"""Fixtures of the tests with other projects' clients: files to upload, and Node with its packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.content import SourceFile, write_source
from tests.clients.tus_js import Job, TusJsClient, require_tus_js

MakeSource = Callable[..., SourceFile]
RunTusJs = Callable[[Job], TusJsClient]


@pytest.fixture
def make_source(tmp_path: Path) -> MakeSource:
    """`make_source(size, name)`: a file of `size` bytes to upload."""

    def make(size: int, name: str = "source.bin") -> SourceFile:
        return write_source(tmp_path / name, size)

    return make


@pytest.fixture(scope="session")
def tus_js_installed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """tus-js-client can be run."""
    require_tus_js(tmp_path_factory)


@pytest.fixture
def run_tus_js(tus_js_installed: None) -> Iterator[RunTusJs]:
    """`run_tus_js(job)`: a started upload of tus-js-client, ended with the test at the latest."""
    with ExitStack() as clients:

        def run(job: Job) -> TusJsClient:
            return clients.enter_context(TusJsClient(job))

        yield run
