"""`examples/uppy/`, by the two commands of its README, in Chromium."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.auth.people import SECRET, access, bearer
from tests.clients.content import MIB, SourceFile, sha256_of_file
from tests.clients.stalls import stalled_links
from tests.docs.blocks import blocks
from tests.frontend.conftest import MakeSource
from tests.frontend.pages import WAIT
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.requirements import require_program
from tests.support.server import ROOT, ServerProcess
from tests.support.tus import Tus, metadata
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(240)
"""Seconds: one of the commands downloads packages."""

EXAMPLE = ROOT / "examples" / "uppy"
TOKENS = ("--jwt-leeway", "0", "--upload-token-ttl", "2s", "--upload-token-refreshes", "10000")
FILE = "application/octet-stream"


class Example(NamedTuple):
    """The page, and the server that it uploads to by a proxy."""

    url: str
    server: ServerProcess
    proxy: FaultProxy


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    """The page with tokens that are valid for two seconds."""
    require_program("node", "nodejs")
    require_program("npm")
    install, start = blocks("examples/uppy/README.md", "sh")[0].splitlines()
    done = subprocess.run(
        shlex.split(install), cwd=EXAMPLE, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    env = {
        "TUSD_JWT_SECRET": SECRET,
        "TUSD_DUPLICATES": "on",
        "TUSD_DUPLICATES_PENDING_GRACE": "100ms",
    }
    directory = tmp_path_factory.mktemp("example") / "uploads"
    with (
        ServerProcess(directory, "--auth", "jwt", *TOKENS, env=env) as server,
        FaultProxy(server.address) as proxy,
    ):
        given = {"ENDPOINT": proxy.url(), "PORT": "0", "TOKEN_LIFETIME": "2"}
        process = subprocess.Popen(
            shlex.split(start),
            cwd=EXAMPLE,
            env={**os.environ, "TUSD_JWT_SECRET": SECRET, **given},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            found = (re.match(r"(http://\S+) uploads to", line) for line in process.stdout)
            url = next((match[1] for match in found if match), None)
            assert url is not None, "npm start ended"
            yield Example(url, server, proxy)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=60)


@pytest.fixture
def page(browser: Browser, example: Example) -> Iterator[Page]:
    errors: list[str] = []
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(example.url)
        yield page
        assert errors == []


def upload(page: Page, source: SourceFile) -> None:
    """Choose a file, and press Uppy's button."""
    page.locator(".uppy-Dashboard-input").first.set_input_files(source.path)
    page.get_by_role("button", name="Upload 1 file").click()


def wait_complete(page: Page) -> None:
    page.locator(".uppy-StatusBar.is-complete").wait_for()


def count_of(server: ServerProcess, source: SourceFile) -> int:
    """How many uploads have this content."""
    files = [server.data_file(name) for name in Tus(server).data_files()]
    return sum(sha256_of_file(file) == source.sha256 for file in files)


def test_an_upload_goes_on_after_its_tokens_expired_and_the_page_was_reloaded(
    example: Example, page: Page, tmp_path: Path, make_source: MakeSource
) -> None:
    source = make_source(2 * MIB, "long.bin")
    example.proxy.default = Plan(up=Way(stall_after=MIB))
    upload(page, source)
    stalled_links(example.proxy)
    files = Tus(example.server).data_files
    wait_until(
        lambda: any(example.server.data_file(each).stat().st_size > MIB // 2 for each in files()),
        "the first half",
        60,
    )
    page.wait_for_timeout(2_100)
    example.proxy.heal()
    before = len(example.proxy.links)
    page.reload()
    expect(page.locator("#unfinished li")).to_contain_text("long.bin: choose it again")
    upload(page, source)
    wait_complete(page)
    assert count_of(example.server, source) == 1
    assert sum(link.up_bytes for link in example.proxy.links[before:]) < source.size
    expect(page.locator("#unfinished")).to_be_hidden()


def test_what_another_tab_leaves_is_shown_at_once(
    example: Example, page: Page, make_source: MakeSource
) -> None:
    example.proxy.default = Plan(up=Way(stall_after=MIB))
    upload(page, make_source(2 * MIB, "released.bin"))
    stalled_links(example.proxy)
    other = page.context.new_page()
    other.goto(example.url)
    other.wait_for_function("navigator.locks.query().then(({ pending }) => pending.length)")
    expect(other.locator("#unfinished")).to_be_hidden()
    page.goto("about:blank")
    expect(other.locator("#unfinished li")).to_contain_text("released.bin: choose it again")
    example.proxy.heal()


@pytest.mark.parametrize("answer", ["Upload it all the same", "Leave it", "Go on with it"])
def test_a_duplicate_is_asked_about(
    example: Example, page: Page, make_source: MakeSource, answer: str
) -> None:
    goes_on = answer == "Go on with it"
    source = make_source(50_000 + len(answer), f"{answer}.bin")
    content = source.path.read_bytes()
    tus = Tus(example.server)
    owner = bearer(access("somebody"))
    given = {"filename": source.path.name, "filetype": FILE}
    path = tus.new(source.size, headers={**owner, "Upload-Metadata": metadata(**given)})
    tus.patch(path, 0, content[: 1000 if goes_on else None], owner)
    upload(page, source)
    expect(page.locator("#question")).to_contain_text(f"{answer}.bin: an ")
    expect(page.get_by_role("button", name="Go on with it")).to_be_visible(visible=goes_on)
    page.get_by_role("button", name=answer).click()
    if answer == "Leave it":
        page.locator(".uppy-StatusBar.is-error").wait_for()
    else:
        wait_complete(page)
    wanted = 2 if answer == "Upload it all the same" else 1
    assert count_of(example.server, source) == wanted
