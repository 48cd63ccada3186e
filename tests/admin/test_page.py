"""The operators' page in headless Chromium: signing in, every action, what it shows live, what other sites can do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

from tests.admin.conftest import ADMIN
from tests.admin.operator import Operator, address_of, new_code
from tests.admin.test_actions import FAILS, begin
from tests.auth.people import SECRET, access, bearer
from tests.frontend.building import CHROMIUM, FRONTEND, build_pages
from tests.frontend.pages import FLAGS, WAIT, Site
from tests.support import ports
from tests.support.requirements import require_program
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until

PANELS = ("overview", "uploads", "events", "jobs", "duplicates", "owners", "settings", "log")
LARGEST = 80_000
"""Bytes of a page with its script and style, compressed."""
AXE = FRONTEND / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with tokens, duplicates and hooks that fail, so that there is something of everything."""
    build_pages()
    directory = tmp_path_factory.mktemp("page")
    hook = directory / "hook.py"
    hook.write_text(FAILS)
    flags = (*ADMIN, "--admin-show-metadata", "--auth", "jwt", "--hook", str(hook))
    env = {"TUSD_JWT_SECRET": SECRET, "TUSD_DUPLICATES": "on", "TUSD_JOBS": "on"}
    more = ("--hooks-delivery-attempts", "1", "--quota-bytes", "50MB")
    with ServerProcess(directory / "uploads", *flags, *more, env=env) as process:
        yield process


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    require_program(CHROMIUM, "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS], timeout=WAIT)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(chromium: Browser, server: ServerProcess) -> Iterator[BrowserContext]:
    """A browser profile that is signed in."""
    context = chromium.new_context(locale="en-GB", viewport={"width": 1280, "height": 860})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.set_default_timeout(WAIT)
    page = context.new_page()
    page.goto(f"{url_of(server)}#{new_code(server)}")
    page.locator(".cards").wait_for()
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, server: ServerProcess) -> Iterator[Page]:
    """A page that is signed in; nothing may go wrong in it."""
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.goto(url_of(server))
    page.locator(".cards").wait_for()
    yield page
    page.close()
    assert problems == []


def url_of(server: ServerProcess) -> str:
    host, port = address_of(server)
    return f"http://{host}:{port}/"


def finish(server: ServerProcess, name: str, owner: str = "alice") -> str:
    headers = {**bearer(access(owner)), "Upload-Metadata": metadata(filename=name)}
    created = Tus(server).create(5, body=b"hello", headers=headers)
    assert created.status == 201, created
    return id_of(path_of(created["Location"]))


def open_panel(page: Page, name: str) -> None:
    page.locator(f'nav a[href="#/{name}"]').click()
    page.locator(f"#{name}").wait_for()


def press(page: Page, row: str, button: str, *, days: str = "") -> None:
    """Press a button in the row that contains a text, or anywhere; answer yes when it asks; wait for the result."""
    place = page.locator("tr", has_text=row) if row else page.locator("main")
    place.get_by_role("button", name=button, exact=True).first.click()
    dialog = page.get_by_role("dialog")
    if days:
        dialog.get_by_label(days, exact=True).check()
    dialog.get_by_role("button", name=button, exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("Done")


# Signing in


def test_a_link_opens_the_page_once(chromium: Browser, server: ServerProcess) -> None:
    link = f"{url_of(server)}#{new_code(server)}"
    context = chromium.new_context()
    page = context.new_page()
    page.goto(link)
    page.locator(".cards").wait_for()
    assert page.url == url_of(server)
    assert page.evaluate("document.cookie") == ""
    assert [cookie["httpOnly"] for cookie in context.cookies()] == [True]
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="tusd-py").wait_for()
    other = context.new_page()
    other.goto(link)
    expect(other.get_by_role("alert")).to_contain_text("used already")
    context.close()


def test_a_token_opens_the_page_also_in_german(chromium: Browser, server: ServerProcess) -> None:
    context = chromium.new_context(locale="de-DE")
    page = context.new_page()
    page.goto(url_of(server))
    page.get_by_label("Oder ein Zugriffstoken").fill(access("alice"))
    page.get_by_role("button", name="Anmelden").click()
    expect(page.get_by_role("alert")).to_contain_text("uploads:admin")
    page.get_by_label("Oder ein Zugriffstoken").fill(access("root", "uploads:admin"))
    page.get_by_role("button", name="Anmelden").click()
    expect(page.get_by_text("root (über Token)")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "de")
    context.close()


# Actions


@pytest.mark.parametrize(
    ("button", "status"), [("End request", 409), ("Revoke", 403), ("Remove", 409)]
)
def test_a_running_body_is_shown_live_and_ended(
    button: str, status: int, page: Page, server: ServerProcess
) -> None:
    name = f"{button.split(maxsplit=1)[0].lower()}.bin"
    headers = {**bearer(access()), "Upload-Metadata": metadata(filename=name)}
    upload_id, connection = begin(server, headers)
    with connection:
        row = page.locator("tr", has_text=name)
        expect(row).to_contain_text("5 B of 50 B")
        press(page, name, button)
        assert connection.read_response("PATCH").status == status
        expect(row).to_have_count(0)
    left = Tus(server).head(f"/files/{upload_id}", bearer(access()))
    # Whose it was is not known any more, so that its owner is not told that it was removed.
    assert left.status == (404 if button == "Remove" else 200)


def test_uploads_are_found_kept_copied_downloaded_and_removed(
    page: Page, server: ServerProcess
) -> None:
    upload_id = finish(server, "found.zip")
    unfinished = id_of(path_of(Tus(server).create(5, headers=bearer(access("bob")))["Location"]))
    root = Operator(address_of(server), bearer(access("root", "uploads:admin")))
    wait_until(lambda: len(root.get("/uploads", q="found")["uploads"]) == 1, "it to be listed")
    wait_until(lambda: len(root.get("/uploads", owner="bob")["uploads"]) == 1, "it to be listed")
    open_panel(page, "uploads")
    page.get_by_label("Search").fill("found")
    expect(page.locator("tbody tr")).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "found.zip"
    assert Path(download.value.path()).read_bytes() == b"hello"
    page.get_by_role("button", name="Copy URL").click()
    expect(page.get_by_role("status")).to_contain_text("copied")
    assert page.evaluate("navigator.clipboard.readText()") == f"{server.url}{upload_id}"
    # Asked, and not done.
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert Tus(server).head(f"/files/{upload_id}", bearer(access())).status == 200
    press(page, "found.zip", "Remove")
    assert Tus(server).head(f"/files/{upload_id}", bearer(access())).status == 404
    expect(page.get_by_text("Nothing was found")).to_be_visible()
    page.get_by_label("Search").fill("bob")
    before = root.get(f"/uploads/{unfinished}")["expires"]
    press(page, "bob", "Keep longer", days="30 days")
    assert root.get(f"/uploads/{unfinished}")["expires"] > before + 20 * 86_400


def test_a_result_does_not_stand_for_the_next_action(page: Page, server: ServerProcess) -> None:
    finish(server, "results-1.zip")
    finish(server, "results-2.zip")
    root = Operator(address_of(server), bearer(access("root", "uploads:admin")))
    wait_until(lambda: len(root.get("/uploads", q="results")["uploads"]) == 2, "both to be listed")
    open_panel(page, "uploads")
    page.get_by_label("Search").fill("results")
    press(page, "results-1.zip", "Remove")
    expect(page.locator("tbody tr")).to_have_count(1)
    held: list[Route] = []
    page.route("**/actions/**", lambda route: held.append(route))  # noqa: PLW0108 - Playwright sets attributes of it
    page.get_by_role("button", name="Remove").click()
    with page.expect_request("**/actions/**"):
        page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.get_by_role("status")).to_be_empty()
    held[0].continue_()
    expect(page.get_by_role("status")).to_contain_text("Done")


def test_one_upload_and_its_fingerprint(page: Page, server: ServerProcess) -> None:
    upload_id = finish(server, "twice.zip")
    page.goto(f"{url_of(server)}#/uploads/{upload_id}")
    expect(page.get_by_role("heading", name="twice.zip")).to_be_visible()
    expect(page.locator(".timeline")).to_contain_text("created")
    expect(page.locator(".facts").last).to_contain_text("filename")
    press(page, "", "Forget fingerprint")
    finish(server, "twice.zip")
    open_panel(page, "duplicates")
    page.get_by_label("Search").fill(upload_id)
    expect(page.get_by_text("Nothing was found")).to_be_visible()


def test_failed_events_are_delivered_again_and_dropped(page: Page, server: ServerProcess) -> None:
    upload_id = finish(server, "told.zip")
    root = Operator(address_of(server), bearer(access("root", "uploads:admin")))

    def failed() -> int:
        return len(root.get(f"/uploads/{upload_id}")["events"])

    def has_failed() -> bool:
        return [e["box"] for e in root.get(f"/uploads/{upload_id}")["events"]] == ["failed"]

    wait_until(has_failed, "the event to fail")
    open_panel(page, "events")
    expect(page.locator("tr", has_text=upload_id[:12])).to_contain_text("the archive is full")
    press(page, upload_id[:12], "Deliver again")
    wait_until(has_failed, "the event to fail again")
    page.reload()
    press(page, upload_id[:12], "Drop")
    assert failed() == 0
    other = finish(server, "told-too.zip")
    wait_until(
        lambda: [e["box"] for e in root.get(f"/uploads/{other}")["events"]] == ["failed"],
        "the event to fail",
    )
    page.reload()
    press(page, "", "Deliver all again")
    wait_until(
        lambda: [e["box"] for e in root.get(f"/uploads/{other}")["events"]] == ["failed"],
        "the event to fail again",
    )
    # Those of other tests, too.
    wait_until(lambda: root.get("/events", box="waiting")["events"] == [], "all to fail again")
    page.reload()
    press(page, "", "Drop all")
    assert root.get("/events", box="failed")["events"] == []


def test_a_sweep_asks_after_a_dry_run(page: Page) -> None:
    open_panel(page, "jobs")
    # Days as the reader writes them.
    schedule = page.locator("tr", has_text="sweep-all")
    expect(schedule).to_contain_text(re.compile(r"\d\d/\d\d/\d{4}, "))
    page.get_by_role("button", name="Sweep all now").click()
    expect(page.get_by_role("dialog")).to_contain_text("0 of ")
    page.get_by_role("dialog").get_by_role("button", name="Sweep all now").click()
    expect(page.get_by_role("status")).to_contain_text("Done: 0 of ")


def test_tokens_of_an_owner_are_revoked(page: Page, server: ServerProcess) -> None:
    finish(server, "carols.zip", owner="carol")
    root = Operator(address_of(server), bearer(access("root", "uploads:admin")))

    def is_counted() -> bool:
        owners = {row["owner"]: row for row in root.get("/owners")["owners"]}
        return "carol" in owners and owners["carol"]["bytes"] == owners["carol"]["counted"] == 5

    wait_until(is_counted, "it to be listed with its bytes")
    open_panel(page, "owners")
    expect(page.locator("tr", has_text="carol")).to_contain_text("5 B5 B / 50 MB")
    page.locator("tr", has_text="carol").get_by_role("link", name="Show uploads").click()
    expect(page.locator("tbody")).to_contain_text("carols.zip")
    open_panel(page, "owners")
    press(page, "carol", "Revoke")
    expect(page.locator("tr", has_text="carol")).to_contain_text("revoked")
    open_panel(page, "log")
    expect(page.locator("tbody tr").first).to_contain_text("revoke-owner")
    expect(page.locator("tbody tr").first).to_contain_text("tester")


# What it looks like to whom


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(scheme: str, page: Page, server: ServerProcess) -> None:
    finish(server, f"{scheme}.zip")
    upload_id, connection = begin(server, bearer(access()))
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    with connection:
        page.locator("tr", has_text=upload_id[:12]).wait_for()
        for panel in PANELS:
            if panel != "overview":
                open_panel(page, panel)
            if panel == "uploads":
                page.locator("tbody tr").first.wait_for()
            assert_no_serious_findings(page)
        page.goto(f"{url_of(server)}#/uploads/{upload_id}")
        page.locator(".timeline").wait_for()
        assert_no_serious_findings(page)
        page.get_by_role("button", name="Remove").click()
        page.get_by_role("dialog").wait_for()
        assert_no_serious_findings(page)


def assert_no_serious_findings(page: Page) -> None:
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run().then(({ violations }) => violations)")
    serious = [
        (each["id"], [node["html"] for node in each["nodes"]][:3])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == [], page.url


def test_it_is_small_and_has_no_inline_code(server: ServerProcess) -> None:
    nobody = Operator(address_of(server))
    page = nobody.ask("GET", "/")
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    html = page.content.decode()
    names = [part.partition('"')[0] for part in html.split("_pages/")[1:]]
    size = len(page.content)
    for name in names:
        answer = nobody.ask("GET", f"/_pages/{name}", headers={"Accept-Encoding": "gzip"})
        assert (answer.status, answer.headers["content-encoding"]) == (200, "gzip")
        size += len(answer.content)
    assert len(names) == 2
    assert size < LARGEST


# Pages of other sites, and a server that goes away

FOREIGN = """
async ([url, upload]) => {
  const found = []
  const order = { method: 'POST', credentials: 'include', body: JSON.stringify({ upload }) }
  for (const [path, init] of [
    ['uploads', { credentials: 'include' }],
    ['actions/remove', { ...order, headers: { 'Content-Type': 'application/json', 'X-Tusd-Admin': '1' } }],
    ['actions/remove', { ...order, mode: 'no-cors', headers: { 'Content-Type': 'text/plain' } }],
  ]) {
    try {
      const answer = await fetch(`${url}admin/api/v1/${path}`, init)
      found.push(answer.type === 'opaque' ? 'opaque' : await answer.text())
    } catch { found.push('refused') }
  }
  return found
}
"""


def test_a_foreign_page_can_neither_read_nor_do_anything(
    context: BrowserContext, server: ServerProcess, tmp_path: Path
) -> None:
    upload_id = finish(server, "precious.zip")
    (tmp_path / "index.html").write_text("<!doctype html><title>foreign</title>")
    with Site(tmp_path) as site:
        page = context.new_page()
        page.goto(site.url)
        # The cookie is sent, as ports do not count for sites: the origin has to.
        assert page.evaluate(FOREIGN, [url_of(server), upload_id]) == [
            "refused",
            "refused",
            "refused",
        ]
        streamed = """url => new Promise((done) => {
          const source = new EventSource(`${url}admin/api/v1/stream`, { withCredentials: true })
          source.onmessage = () => done('read')
          source.onerror = () => { source.close(); done('refused') }
        })"""
        assert page.evaluate(streamed, url_of(server)) == "refused"
        page.close()
    assert Tus(server).head(f"/files/{upload_id}", bearer(access())).status == 200


def test_a_server_that_restarts_is_waited_for(chromium: Browser, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads", "--admin", "127.0.0.1:0") as server:
        port = address_of(server)[1]
        context = chromium.new_context(locale="en-GB")
        page = context.new_page()
        page.goto(f"{url_of(server)}#{new_code(server)}")
        page.locator(".cards").wait_for()
        server.kill9()
        with closing(ports.reserve("127.0.0.1", port)):
            expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
            server.flags = ("--admin", f"127.0.0.1:{port}")
            server.restart()
        # Sessions end with the server.
        expect(page.get_by_role("alert")).to_contain_text("session has ended")
        # Without --auth jwt no token opens the page.
        expect(page.get_by_role("textbox")).to_have_count(0)
        context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_names_neither_run_nor_deceive_nor_hide_anything(
    width: int, page: Page, server: ServerProcess
) -> None:
    code = '<img src=x onerror="window.ran=1"><script>window.ran=1</script>'
    owner = f"owner{width}"
    finish(server, f"{code}{width}", owner)
    finish(server, "a" * 255, owner)
    upload = finish(server, "\u202egpj.exe", owner)
    operator = Operator(address_of(server)).sign_in(new_code(server))
    wait_until(
        lambda: upload in {row["id"] for row in operator.get("/uploads")["uploads"]}, "it is listed"
    )
    page.set_viewport_size({"width": width, "height": 860})
    open_panel(page, "uploads")
    row = page.locator("tr", has_text=upload[:12])
    # In the order in which its characters are, with a sign where one is that turns it round.
    link = row.get_by_role("link").first
    expect(link).to_have_text("\ufffdgpj.exe")
    expect(page.get_by_role("link", name=f"{code}{width}")).to_be_visible()
    if width > 1000:
        expect(row.get_by_role("button").last).to_be_in_viewport()
    page.get_by_role("link", name="a" * 255).first.click()
    page.locator("#upload").get_by_text("a" * 255).wait_for()
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert (page.evaluate(wide), page.evaluate("window.ran")) == (False, None)
