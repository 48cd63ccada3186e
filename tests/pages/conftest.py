"""The upload page of real servers in Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.clients.content import SourceFile, write_source
from tests.frontend.building import build_pages
from tests.frontend.conftest import browser
from tests.pages.upload_page import Visitor
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.server import ServerProcess

__all__ = ["browser"]

Visit = Callable[..., Visitor]
MakeSource = Callable[..., SourceFile]

MEGABYTE = 1_000_000


@pytest.fixture(scope="session")
def built() -> None:
    """The pages are built; a server reads them when it starts."""
    build_pages()


@pytest.fixture(scope="module")
def server(built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server that checks duplicates, for all tests of a module. Do not stop it."""
    env = {"TUSD_DUPLICATES": "on"}
    with ServerProcess(tmp_path_factory.mktemp("server") / "uploads", env=env) as process:
        yield process


@pytest.fixture
def slow(server: ServerProcess) -> Iterator[FaultProxy]:
    """A line to the server that takes 4 MB/s a connection."""
    with FaultProxy(server.address, default=Plan(up=Way(rate=4 * MEGABYTE))) as proxy:
        yield proxy


@pytest.fixture
def make_source(tmp_path: Path) -> MakeSource:
    """`make_source(size, name)`: a file of `size` bytes to upload."""

    def make(size: int, name: str = "source.bin") -> SourceFile:
        return write_source(tmp_path / name, size)

    return make


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """`visit(url)`: the page at a server's root, in a browser profile of the test's own, without errors until its end."""
    context = browser.new_context(locale="en-GB", viewport={"width": 900, "height": 900})
    visitors: list[Visitor] = []

    def make(root: str) -> Visitor:
        visitor = Visitor(context.new_page(), root)
        visitors.append(visitor)
        visitor.open()
        return visitor

    yield make
    context.close()
    for visitor in visitors:
        assert visitor.errors == []
