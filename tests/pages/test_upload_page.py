"""The upload page: every action, everything that may come between, and whether everybody can use it."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from pathlib import Path
from time import monotonic

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.auth.people import SECRET, access
from tests.clients.content import SourceFile, sha256_of_file
from tests.clients.stalls import stalled_links
from tests.conftest import MakeServer
from tests.frontend.building import CHROMIUM
from tests.frontend.pages import FLAGS, WAIT
from tests.pages.conftest import MEGABYTE, MakeSource, Visit
from tests.pages.upload_page import Visitor
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, path_of, wait_for_size


def root_of(server: ServerProcess | FaultProxy) -> str:
    address = server.address
    return f"http://{address[0]}:{address[1]}/"


def assert_stored(server: ServerProcess, url: str, source: SourceFile) -> None:
    assert sha256_of_file(server.data_file(id_of(path_of(url)))) == source.sha256


def content(server: ServerProcess, url: str) -> bytes:
    return Tus(server).get(path_of(url)).body


# -- giving files ----------------------------------------------------------------------------------


def test_files_are_chosen_dropped_and_pasted(server: ServerProcess, visit: Visit) -> None:
    page = visit(root_of(server))
    page.drop(("dropped.txt", "a dropped file"), ("second.txt", "another one"))
    page.paste(("pasted.png", "a picture"))
    for name, text in (("dropped.txt", b"a dropped file"), ("pasted.png", b"a picture")):
        page.wait_state(name, "completed")
        assert content(server, page.url_of(name)) == text
    page.wait_state("second.txt", "completed")
    page.wait_text("3 of 3 uploaded")
    page.press_any("Clear the list")
    expect(page.page.locator("#uploads")).to_have_count(0)


def test_a_folder_keeps_its_paths(server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    (folder / "inner").mkdir(parents=True)
    (folder / "one.txt").write_text("one in a folder")
    (folder / "inner" / "one.txt").write_text("one further in")
    page = visit(root_of(server))
    page.page.set_input_files("#folder", str(folder))
    page.wait_text("2 of 2 uploaded")
    shown = page.page.locator("#uploads .name").all_inner_texts()
    assert sorted(shown) == ["study/inner/one.txt", "study/one.txt"]
    fields = dict(Tus(server).head(path_of(page.url_of("study/inner"))).headers)
    assert "relativePath" in next(v for k, v in fields.items() if k.lower() == "upload-metadata")


# -- acting on uploads -----------------------------------------------------------------------------


def test_pause_resume_cancel_remove(
    server: ServerProcess, slow: FaultProxy, visit: Visit, make_source: MakeSource
) -> None:
    kept, dropped = (
        make_source(48 * MEGABYTE, "kept.bin"),
        make_source(40 * MEGABYTE, "dropped.bin"),
    )
    slow.default = Plan(up=Way(rate=4 * MEGABYTE, stall_after=30 * MEGABYTE))
    page = visit(root_of(slow))
    page.give(kept.path, dropped.path)
    page.wait_text(re.compile(r"Uploading · [\d.]+ MB of 48\.0 MB · [\d.]+ MB/s · \d+ s left"))
    page.press_any("Pause all")
    page.wait_state("kept.bin", "paused")
    page.wait_state("dropped.bin", "paused")
    slow.heal()
    page.press("Resume", "kept.bin")
    page.wait_state("kept.bin", "completed")
    assert_stored(server, page.url_of("kept.bin"), kept)
    before = len(Tus(server).data_files())
    page.press("Cancel", "dropped.bin")
    page.press_any("No, keep it")
    page.wait_state("dropped.bin", "paused")
    page.press("Cancel", "dropped.bin")
    page.press_any("Yes, remove it")
    page.wait_state("dropped.bin", "cancelled")
    page.press("Hide", "dropped.bin")
    expect(page.row("dropped.bin")).to_have_count(0)
    deadline = monotonic() + 30
    while len(Tus(server).data_files()) == before:
        assert monotonic() < deadline
        page.page.wait_for_timeout(20)


def test_what_the_server_refuses_is_said_in_words(
    built: None, make_server: MakeServer, visit: Visit, make_source: MakeSource
) -> None:
    small = make_server("--max-size", "1MB")
    page = visit(root_of(small))
    page.wait_text("At most 1.0 MB a file.")
    page.give(make_source(2 * MEGABYTE).path)
    page.wait_text(re.compile("The file is too large for this server"))
    page.press("Hide", "source.bin")
    expect(page.page.locator("#uploads")).to_have_count(0)


# -- what comes between ----------------------------------------------------------------------------


def test_200_megabytes_survive_kills_cuts_and_a_reload(
    built: None, make_server: MakeServer, visit: Visit, make_source: MakeSource
) -> None:
    """Every connection stands still after 60 MB, so that each of them is broken off."""
    server = make_server()
    source = make_source(200 * MEGABYTE)
    with FaultProxy(server.address, default=Plan(up=Way(stall_after=60 * MEGABYTE))) as proxy:
        page = visit(root_of(proxy))
        page.give(source.path)

        def wait_stalled(connections: int, megabytes: int) -> None:
            stalled_links(proxy, connections)
            wait_for_size(server, server.base_path + server.uploads()[0], megabytes * MEGABYTE)
            page.wait_sent("source.bin", megabytes / 200)

        wait_stalled(1, 55)
        server.kill9()
        page.wait_state("source.bin", "waiting")
        page.wait_text(re.compile("The server cannot be reached"))
        mark = len(page.traffic)
        server.restart()
        page.wait_state("source.bin", "uploading")
        assert page.probes_answered(mark) <= 1

        wait_stalled(2, 110)
        page.page.context.set_offline(True)
        page.wait_state("source.bin", "waiting")
        page.wait_text(re.compile("No connection; goes on by itself"))
        mark = len(page.traffic)
        page.page.context.set_offline(False)
        page.wait_state("source.bin", "uploading")
        assert page.probes_answered(mark) <= 1

        wait_stalled(3, 165)
        proxy.heal()
        page.open()
        row = page.left("source.bin")
        expect(row.locator(".info")).to_have_text(re.compile(r"1\d\d MB of 200 MB arrived"))
        other = make_source(1000, "other.bin")
        row.locator("input").set_input_files(str(other.path))
        page.wait_text("other.bin is not the file that was being uploaded")
        row.locator("input").set_input_files(str(source.path))
        page.wait_state("source.bin", "completed")
        assert_stored(server, page.url_of("source.bin"), source)
        assert len(Tus(server).data_files()) == 1


def test_a_line_that_is_dead_without_a_word_is_noticed(
    built: None, make_server: MakeServer, visit: Visit, make_source: MakeSource
) -> None:
    """Nothing passes any more, and nothing ends: the browser takes the line for alive."""
    server = make_server()
    source = make_source(24 * MEGABYTE)
    with FaultProxy(server.address, default=Plan(up=Way(stall_after=12 * MEGABYTE))) as proxy:
        page = visit(root_of(proxy))
        page.give(source.path)
        page.wait_sent("source.bin", 0.3)
        os.kill(server.pid, signal.SIGSTOP)
        page.wait_state("source.bin", "waiting")
        proxy.heal()
        mark = len(page.traffic)
        os.kill(server.pid, signal.SIGCONT)
        # What was on its way may be all that was left.
        page.wait_state("source.bin", "completed")
        assert page.probes_answered(mark) <= 1
    assert_stored(server, page.url_of("source.bin"), source)


# A file of the origin's own file system: its handles are kept as those of the disk are, but nobody has to choose it.
HANDED = """
  window.showOpenFilePicker = async () => {
    const folder = await navigator.storage.getDirectory()
    const handle = await folder.getFileHandle('handed.bin', { create: true })
    if ((await handle.getFile()).size === 0) {
      const stream = await handle.createWritable()
      const block = Uint8Array.from({ length: 1_000_000 }, (_, index) => index % 251)
      for (let number = 0; number < 12; number += 1) await stream.write(block)
      await stream.close()
    }
    return [handle]
  }
"""
HANDLE_IS_KEPT = """
  async () => {
    // Whoever opens a database that is not there makes an empty one.
    if (!(await indexedDB.databases()).some(({ name }) => name === 'tusd-py-page')) return false
    const result = (request) => new Promise((resolve, reject) => {
      request.onsuccess = () => resolve(request.result)
      request.onerror = () => reject(request.error)
    })
    const database = await result(indexedDB.open('tusd-py-page'))
    try {
      return (await result(database.transaction('handles').objectStore('handles').count())) === 1
    } finally {
      database.close()
    }
  }
"""


def test_after_the_browser_was_closed_it_goes_on_without_choosing_again(
    server: ServerProcess, slow: FaultProxy, browser: Browser, tmp_path: Path
) -> None:
    expected = hashlib.sha256(bytes(index % 251 for index in range(MEGABYTE)) * 12).hexdigest()
    kind = browser.browser_type

    def opened() -> Visitor:
        context = kind.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=CHROMIUM,
            args=list(FLAGS),
            timeout=WAIT,
            locale="en-GB",
        )
        context.add_init_script(HANDED)
        page = Visitor(context.new_page(), root_of(slow))
        page.open()
        return page

    slow.default = Plan(up=Way(stall_after=6 * MEGABYTE))
    page = opened()
    page.press_any("Choose files")
    stalled_links(slow)
    page.page.wait_for_function(HANDLE_IS_KEPT)
    page.page.context.close()
    slow.heal()
    page = opened()
    page.press("Go on", "handed.bin")
    page.wait_state("handed.bin", "completed")
    url = page.url_of("handed.bin")
    assert sha256_of_file(server.data_file(id_of(path_of(url)))) == expected
    page.open()
    expect(page.page.locator("#left")).to_have_count(0)
    page.page.context.close()


# -- duplicates ------------------------------------------------------------------------------------


@pytest.fixture
def twice(server: ServerProcess, visit: Visit, make_source: MakeSource) -> Visitor:
    """A page that asks about a file which it uploaded before."""
    source = make_source(3000, "twice.txt")
    page = visit(root_of(server))
    page.give(source.path)
    page.page.wait_for_selector("dialog[open], li[data-state=completed]")
    if page.page.locator("dialog").count():
        page.press_any("Upload it all the same")
    page.wait_state("twice.txt", "completed")
    page.press("Hide", "twice.txt")
    page.give(source.path)
    page.wait_text("A file like twice.txt is on the server already.")
    return page


def test_a_duplicate_is_opened(twice: Visitor) -> None:
    with twice.page.context.expect_page() as opening:
        twice.press_any("Open the one that is there")
    opening.value.wait_for_url("**/files/*")
    opening.value.close()
    twice.wait_text(re.compile("The server has this file already"))


def test_a_duplicate_is_uploaded_all_the_same(server: ServerProcess, twice: Visitor) -> None:
    before = len(Tus(server).data_files())
    twice.press_any("Upload it all the same")
    twice.wait_state("twice.txt", "completed")
    assert len(Tus(server).data_files()) == before + 1


def test_a_duplicate_is_left(server: ServerProcess, twice: Visitor) -> None:
    before = len(Tus(server).data_files())
    twice.page.keyboard.press("Escape")
    twice.wait_text(re.compile("The server has this file already"))
    assert len(Tus(server).data_files()) == before
    assert twice.row("twice.txt").get_by_role("link", name="Open").count() == 1


def test_one_answer_for_all(server: ServerProcess, visit: Visit, make_source: MakeSource) -> None:
    paths = [make_source(2000 + number, f"many-{number}.bin").path for number in range(3)]
    page = visit(root_of(server))
    page.give(*paths)
    page.wait_text("3 of 3 uploaded")
    page.press_any("Clear the list")
    before = len(Tus(server).data_files())
    page.give(*paths)
    page.page.get_by_label("Answer the same for all others").check()
    page.press_any("Upload it all the same")
    page.wait_text("3 of 3 uploaded")
    assert len(Tus(server).data_files()) == before + 3


# -- tokens ----------------------------------------------------------------------------------------

SHORT = ("--auth", "jwt", "--upload-token-ttl", "2s", "--upload-token-refreshes", "10000")
JWT = {
    "TUSD_JWT_SECRET": SECRET,
    "TUSD_DUPLICATES": "on",
    "TUSD_DUPLICATES_PENDING_GRACE": "100ms",
}


def test_a_token_is_asked_for_and_its_uploads_outlive_it(
    built: None, make_server: MakeServer, visit: Visit, make_source: MakeSource, browser: Browser
) -> None:
    server = make_server(*SHORT, env=JWT)
    source = make_source(16 * MEGABYTE)
    token = access()
    with FaultProxy(server.address, default=Plan(up=Way(stall_after=12 * MEGABYTE))) as proxy:
        page = visit(root_of(proxy))
        page.give(source.path)
        page.page.get_by_label("Token", exact=True).fill("wrong")
        page.press_any("Use this token")
        page.wait_text("The server did not accept this token. Enter another one.")
        page.page.get_by_label("Token", exact=True).fill(token)
        page.page.keyboard.press("Enter")
        page.wait_text("Token entered.")
        stalled_links(proxy)
        # Until its upload token has expired.
        page.page.wait_for_timeout(2_100)
        proxy.heal()
        # Another browser of the same owner: the unfinished one is found, and gone on with.
        page.press("Pause", "source.bin")
        page.wait_state("source.bin", "paused")
        with browser.new_context(locale="en-GB") as context:
            other = Visitor(context.new_page(), root_of(proxy))
            other.open()
            other.page.get_by_label("Token", exact=True).fill(token)
            other.page.keyboard.press("Enter")
            other.give(source.path)
            other.wait_text(re.compile("An upload of source.bin was begun before"))
            other.press_any("Go on with the unfinished one")
            other.wait_state("source.bin", "completed")
            with other.page.expect_download() as download:
                other.press_any("Save a copy")
            assert sha256_of_file(Path(download.value.path())) == source.sha256
            urls = [url for _, url in (*page.traffic, *other.traffic)]
        assert not [url for url in urls if token in url or "token=" in url]
    [stored] = Tus(server).data_files()
    assert sha256_of_file(server.data_file(stored)) == source.sha256


def test_a_token_comes_from_the_integrators_endpoint(
    built: None, make_server: MakeServer, visit: Visit, make_source: MakeSource
) -> None:
    server = make_server("--auth", "jwt", "--pages-token-url", "/login/token", env=JWT)
    answers = [(503, ""), (200, f'{{"access_token": "{access()}"}}')]

    def answer(route: Route) -> None:
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        route.fulfill(status=status, body=body)

    page = visit(root_of(server))
    page.page.route("**/login/token", answer)
    source = make_source(1000)
    page.give(source.path)
    page.wait_state("source.bin", "completed")
    expect(page.page.get_by_label("Token", exact=True)).to_have_count(0)
    [stored] = Tus(server).data_files()
    assert sha256_of_file(server.data_file(stored)) == source.sha256


# -- for everybody ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hinders_people(
    server: ServerProcess,
    slow: FaultProxy,
    visit: Visit,
    make_source: MakeSource,
    scheme: str,
) -> None:
    """With every kind of row, and on a phone."""
    slow.default = Plan(up=Way(stall_after=8 * MEGABYTE))
    page = visit(root_of(slow))
    page.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    half, done = make_source(60 * MEGABYTE, f"half-{scheme}.bin"), make_source(10, f"{scheme}.bin")
    page.give(half.path)
    page.wait_sent(half.path.name, 0.1)
    page.open()
    page.left(half.path.name).wait_for()
    long = make_source(80 * MEGABYTE, f"{'a-long-name' * 12}-{scheme}.bin")
    page.give(done.path, long.path)
    page.wait_sent(long.path.name, 0.01)  # what has sent nothing is cancelled without a question
    page.page.wait_for_selector("[data-state=completed]")
    page.press("Pause", long.path.name)
    page.press("Cancel", long.path.name)
    assert page.serious() == []
    page.page.set_viewport_size({"width": 360, "height": 740})
    assert not page.overflows()
    assert page.serious() == []
    page.press_any("No, keep it")
    page.press("Hide", done.path.name)
    page.give(done.path)
    page.page.wait_for_selector("dialog[open]")
    assert page.serious() == []
    assert not page.overflows()


def test_the_keyboard_does_all(
    server: ServerProcess, slow: FaultProxy, visit: Visit, make_source: MakeSource
) -> None:
    slow.default = Plan(up=Way(stall_after=8 * MEGABYTE))
    page = visit(root_of(slow))
    source = make_source(40 * MEGABYTE, "keys.bin")
    page.page.keyboard.press("Tab")
    expect(page.page.get_by_role("button", name="Choose files")).to_be_focused()
    page.give(source.path)
    page.wait_sent("keys.bin", 0.1)
    page.page.keyboard.press("Tab")
    page.page.keyboard.press("Tab")
    page.page.keyboard.press("Enter")
    page.wait_state("keys.bin", "paused")
    slow.heal()
    page.page.keyboard.press("Enter")
    page.wait_state("keys.bin", "completed")
    expect(page.page.get_by_role("status")).to_have_text("keys.bin is uploaded")


def test_it_speaks_german(server: ServerProcess, browser: Browser) -> None:
    with browser.new_context(locale="de-CH") as context:
        page = Visitor(context.new_page(), root_of(server))
        page.open()
        page.wait_text("Dateien oder Ordner hier ablegen")
        assert page.page.get_attribute("html", "lang") == "de"
        page.press_any("English")
        page.wait_text("Drop files or folders here")
        page.open()
        page.wait_text("Drop files or folders here")


def test_what_is_known_does_not_delay_the_page(server: ServerProcess, visit: Visit) -> None:
    page = visit(root_of(server))
    page.page.evaluate(
        """() => new Promise((resolve) => {
          const opening = indexedDB.open('tusd-py-uploads', 1)
          opening.onsuccess = () => {
            const writing = opening.result.transaction('uploads', 'readwrite')
            for (let number = 0; number < 5_000; number += 1) {
              writing.objectStore('uploads').put({
                id: `known-${number}`, namespace: '', endpoint: new URL('files/', location).href,
                url: new URL(`files/${number}`, location).href, fingerprint: String(number),
                name: `known ${number}.bin`, size: 1000, metadata: {}, offset: 10, token: null,
                tokenExpires: null, created: 0, updated: number, cancelled: false,
              })
            }
            writing.oncomplete = () => { opening.result.close(); resolve() }
          }
        })"""
    )
    page.open()
    painted: float = page.page.evaluate(
        """() => new Promise((resolve) => new PerformanceObserver((list) =>
             resolve(list.getEntriesByName('first-contentful-paint')[0].startTime)
           ).observe({ type: 'paint', buffered: true }))"""
    )
    page.left("known 4999.bin").wait_for()
    assert page.page.locator("#left > li").count() == 100
    assert painted < page.page.evaluate("performance.now()")
    print(f"first paint after {painted:.0f} ms")
    page.press_any("Show 4900 more")
    expect(page.page.locator("#left > li")).to_have_count(200)
