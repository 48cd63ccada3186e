"""The pages in a browser that keeps nothing for them: cookies are blocked, so their storage and their locks are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.admin.operator import Operator, address_of, new_code
from tests.auth.people import SECRET, access
from tests.frontend.building import CHROMIUM
from tests.frontend.pages import FLAGS, WAIT
from tests.pages.upload_page import Visitor
from tests.support.requirements import require_program
from tests.support.server import ServerProcess

BLOCKED = {"profile": {"default_content_setting_values": {"cookies": 2}}}


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A browser profile that blocks cookies, by its own setting."""
    preferences = tmp_path / "profile" / "Default" / "Preferences"
    preferences.parent.mkdir(parents=True)
    preferences.write_text(json.dumps(BLOCKED))
    return tmp_path / "profile"


def test_operators_are_told_to_allow_cookies_and_keep_their_link(
    built: None, profile: Path, tmp_path: Path
) -> None:
    require_program(CHROMIUM, "chromium")
    with (
        ServerProcess(tmp_path / "uploads", "--admin", "127.0.0.1:0") as server,
        sync_playwright() as playwright,
    ):
        host, port = address_of(server)
        code = new_code(server)
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=[*FLAGS], locale="en-GB", timeout=WAIT
        )
        page = context.new_page()
        page.goto(f"http://{host}:{port}/#{code}")
        expect(page.get_by_role("alert")).to_contain_text("Allow cookies", timeout=WAIT)
        context.close()
        Operator((host, port)).sign_in(code)


def test_uploads_work_and_the_page_says_that_nothing_is_kept(
    built: None, profile: Path, tmp_path: Path
) -> None:
    require_program(CHROMIUM, "chromium")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "some.txt").write_bytes(b"hello")
    env = {"TUSD_AUTH": "jwt", "TUSD_JWT_SECRET": SECRET}
    with ServerProcess(tmp_path / "uploads", env=env) as server, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=[*FLAGS], locale="en-GB", timeout=WAIT
        )
        visitor = Visitor(context.new_page(), f"http://127.0.0.1:{server.port}/")
        visitor.open()
        assert visitor.page.evaluate("() => { try { localStorage } catch (e) { return e.name } }")
        visitor.page.get_by_label("token").first.fill(access())
        visitor.page.keyboard.press("Enter")
        visitor.give(tmp_path / "empty", tmp_path / "some.txt")
        visitor.wait_state("empty", "completed")
        visitor.wait_state("some.txt", "completed")
        visitor.wait_text("The browser keeps no data for this page")
        visitor.press_any("Deutsch")
        visitor.wait_text("Dateien hochladen")
        context.close()
    assert visitor.errors == []
