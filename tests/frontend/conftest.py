"""Servers with `--auth jwt`, and their clients: an UploadManager under Node, and pages in Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.auth.people import SECRET
from tests.clients.content import SourceFile, write_source
from tests.conftest import MakeServer
from tests.frontend.building import CHROMIUM, DIST, build
from tests.frontend.managed import Job, ManagedUploads
from tests.frontend.pages import FLAGS, WAIT, Site, UploadPage
from tests.support.requirements import require_program
from tests.support.server import ServerProcess

MakeSource = Callable[..., SourceFile]
RunManaged = Callable[[Job], ManagedUploads]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`frontend/dist` is there."""
    build(tmp_path_factory)


@pytest.fixture
def make_source(tmp_path: Path) -> MakeSource:
    """`make_source(size, name)`: a file of `size` bytes to upload."""

    def make(size: int, name: str = "source.bin") -> SourceFile:
        return write_source(tmp_path / name, size)

    return make


@pytest.fixture
def managed(built: None) -> Iterator[RunManaged]:
    """`managed(job)`: started uploads under Node, ended with the test at the latest."""
    with ExitStack() as running:

        def run(job: Job) -> ManagedUploads:
            return running.enter_context(ManagedUploads(job))

        yield run


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with `--auth jwt` for all tests of a module. Do not stop it."""
    directory = tmp_path_factory.mktemp("guarded") / "uploads"
    with ServerProcess(directory, "--auth", "jwt", env={"TUSD_JWT_SECRET": SECRET}) as process:
        yield process


@pytest.fixture(scope="module")
def checking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that also checks duplicates. Each test must upload different content."""
    directory = tmp_path_factory.mktemp("checking") / "uploads"
    env = {"TUSD_JWT_SECRET": SECRET, "TUSD_DUPLICATES": "on"}
    with ServerProcess(directory, "--auth", "jwt", env=env) as process:
        yield process


@pytest.fixture
def own_guarded(make_server: MakeServer) -> ServerProcess:
    """A server of the test's own that asks for tokens."""
    return make_server("--auth", "jwt", env={"TUSD_JWT_SECRET": SECRET})


@pytest.fixture
def short_lived(make_server: MakeServer) -> ServerProcess:
    """A server whose upload tokens are valid for two seconds."""
    flags = ("--upload-token-ttl", "2s", "--upload-token-refreshes", "10000")
    return make_server("--auth", "jwt", *flags, env={"TUSD_JWT_SECRET": SECRET})


@pytest.fixture(scope="module")
def browser(built: None) -> Iterator[Browser]:
    """Headless Chromium. Tests that use it must not be coroutines."""
    require_program(CHROMIUM, "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=list(FLAGS), timeout=WAIT
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A web server with `page.html` and the module that it uses."""
    directory = tmp_path_factory.mktemp("site")
    shutil.copy(Path(__file__).parent / "page.html", directory)
    shutil.copy(DIST / "upload-manager.js", directory)
    with Site(directory) as server:
        yield server


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[UploadPage]:
    """A page of a browser profile of its own."""
    context = browser.new_context()
    page = UploadPage(context.new_page(), f"{site.url}/page.html")
    yield page
    context.close()
    assert page.errors == []
