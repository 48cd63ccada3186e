"""The documented pages work as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog

from tests.auth.people import access
from tests.clients.content import MIB, sha256_of_file
from tests.docs.blocks import blocks
from tests.frontend.building import DIST
from tests.frontend.conftest import MakeSource
from tests.frontend.pages import WAIT, Site
from tests.support.server import ServerProcess
from tests.support.tus import Tus
from tests.support.waiting import wait_until

ENDPOINT = "https://uploads.example/files/"


@pytest.fixture
def pasted(checking: ServerProcess, tmp_path: Path) -> Path:
    """The page of docs/frontend.md, for this server, with what it says that it needs beside it."""
    directory = tmp_path / "pasted"
    directory.mkdir()
    [code] = blocks("docs/frontend.md", "html")
    assert ENDPOINT in code
    (directory / "index.html").write_text(code.replace(ENDPOINT, checking.url))
    (directory / "access-token").write_text(access())
    shutil.copy(DIST / "upload-manager.js", directory)
    return directory


def test_the_page(
    pasted: Path,
    browser: Browser,
    checking: ServerProcess,
    make_source: MakeSource,
) -> None:
    source = make_source(MIB)
    questions: list[str] = []

    def answer(dialog: Dialog) -> None:
        questions.append(dialog.message)
        dialog.accept()

    context = browser.new_context()
    with Site(pasted) as site:
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("dialog", answer)
        page.goto(site.url)
        page.set_input_files("input", str(source.path))
        page.locator("#uploads li", has_text="completed").wait_for()
        assert f"{MIB} of {MIB} bytes" in page.locator("#uploads li").inner_text()
        assert questions == []
        page.reload()
        page.set_input_files("input", str(source.path))
        page.locator("#uploads li", has_text="completed").wait_for()
        [question] = questions
        known = "source.bin: an upload with the same metadata and length was finished on "
        assert question.startswith(known)
        assert question.endswith(".\nUpload it all the same?")
    context.close()
    stored = Tus(checking).data_files()
    sums = [sha256_of_file(checking.data_file(name)) for name in stored]
    assert sums == [source.sha256] * 2


def test_the_readme(
    browser: Browser, guarded: ServerProcess, make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source(MIB)
    code = blocks("frontend/README.md", "js")[0]
    code = code.replace(ENDPOINT, guarded.url)
    code = code.replace("'@tusd-py/upload-manager'", "'./upload-manager.js'")
    (tmp_path / "index.html").write_text(
        f'<input type="file" /><script type="module">{code}</script>'
    )
    (tmp_path / "access-token").write_text(access())
    shutil.copy(DIST / "upload-manager.js", tmp_path)
    context = browser.new_context()
    with Site(tmp_path) as site:
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.goto(site.url)
        with page.expect_console_message(
            lambda message: (
                message.text.startswith("source.bin") and f"sent: {MIB}" in message.text
            ),
            timeout=WAIT,
        ):
            page.set_input_files("input", str(source.path))
        # It was sent; that it has arrived is not told.
        [upload_id] = Tus(guarded).data_files()
        file = guarded.data_file(upload_id)
        wait_until(lambda: file.stat().st_size == MIB, "the last bytes", 60)
    context.close()
    assert sha256_of_file(file) == source.sha256
