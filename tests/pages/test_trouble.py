"""The upload page when files, tabs and servers do what nobody hopes for."""

from __future__ import annotations

import re

from playwright.sync_api import Route, expect

from tests.clients.stalls import stalled_links
from tests.frontend.pages import WAIT
from tests.pages.conftest import MEGABYTE, MakeSource, Visit
from tests.pages.test_upload_page import content, root_of
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.server import ServerProcess
from tests.support.tus import Tus
from tests.support.waiting import wait_until

BACKWARDS = "invoice\u202efdp.exe"
"""A name that a browser shows as "invoiceexe.pdf"."""


def test_a_file_that_is_changed_while_it_is_sent_is_not_called_uploaded(
    server: ServerProcess, slow: FaultProxy, visit: Visit, make_source: MakeSource
) -> None:
    """The browser sends the beginning of one version and the end of the other; what arrived is removed."""
    # More than what the sockets on the way can take in behind the place where it stands still.
    source = make_source(80 * MEGABYTE, "changed.bin")
    slow.default = Plan(up=Way(stall_after=8 * MEGABYTE))
    before = Tus(server).data_files()
    page = visit(root_of(slow))
    page.give(source.path)
    [link] = stalled_links(slow)
    with source.path.open("r+b") as file:
        file.write(b"\0" * source.size)
    link.release()
    page.wait_state("changed.bin", "failed")
    page.wait_text(re.compile("was changed since it was chosen"))
    assert Tus(server).data_files() == before


def test_what_another_tab_has_finished(
    server: ServerProcess, slow: FaultProxy, visit: Visit, make_source: MakeSource
) -> None:
    source = make_source(12 * MEGABYTE, "tabs.bin")
    slow.default = Plan(up=Way(stall_after=8 * MEGABYTE))
    first = visit(root_of(slow))
    first.give(source.path)
    first.wait_sent("tabs.bin", 0.3)
    first.open()
    slow.heal()
    second = visit(root_of(slow))
    for page in (first, second):
        page.left("tabs.bin").wait_for()
    first.left("tabs.bin").locator("input").set_input_files(str(source.path))
    first.wait_state("tabs.bin", "completed")
    second.left("tabs.bin").locator("input").set_input_files(str(source.path))
    second.wait_text("tabs.bin was finished or removed in another tab")
    expect(second.page.locator("#left")).to_have_count(0)


def test_what_another_tab_leaves_is_offered_at_once(
    slow: FaultProxy, visit: Visit, make_source: MakeSource
) -> None:
    """Nothing happens to the second tab itself, which knew of the upload from its beginning."""
    slow.default = Plan(up=Way(stall_after=8 * MEGABYTE))
    first = visit(root_of(slow))
    first.give(make_source(40 * MEGABYTE, "released.bin").path)
    first.wait_sent("released.bin", 0.05)
    second = visit(root_of(slow))
    second.page.wait_for_function("navigator.locks.query().then(({ pending }) => pending.length)")
    expect(second.left("released.bin")).to_have_count(0)
    first.page.goto("about:blank")
    second.left("released.bin").wait_for()


def test_a_tab_that_is_shown_again_knows_what_others_left(
    slow: FaultProxy, visit: Visit, make_source: MakeSource
) -> None:
    source = make_source(40 * MEGABYTE, "shown.bin")
    slow.default = Plan(up=Way(stall_after=8 * MEGABYTE))
    second, first = visit(root_of(slow)), visit(root_of(slow))
    first.give(source.path)
    first.wait_sent("shown.bin", 0.05)
    first.page.goto("about:blank")

    def shows_it() -> bool:
        # Headless tabs are always shown.
        second.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        return second.left("shown.bin").count() == 1

    wait_until(shows_it, "the row")


def test_empty_files_and_names_that_turn(server: ServerProcess, visit: Visit) -> None:
    page = visit(root_of(server))
    long = "n" * 250 + ".txt"
    texts = {"empty.txt": "", "שלום.txt": "peace", BACKWARDS: "a picture", long: "long"}
    page.drop(*texts.items())
    page.wait_text("4 of 4 uploaded")
    for name, text in texts.items():
        assert content(server, page.url_of(name)) == text.encode()
    assert not page.overflows()
    # A name turns nothing but itself: in rows and within sentences.
    expect(page.page.locator(".name bdi")).to_have_count(4)
    page.press("Hide", BACKWARDS)
    page.drop((BACKWARDS, "a picture"))
    page.wait_text(f"A file like \u2068{BACKWARDS}\u2069 is on the server already.")


REFUSALS = {
    507: ("ERR_INSUFFICIENT_STORAGE", "The server has no room left"),
    429: ("ERR_TOO_MANY_UPLOADS", "You have as many unfinished uploads as you may"),
    423: ("ERR_UPLOAD_LOCKED", "The server is busy"),
    413: ("ERR_MAX_SIZE_EXCEEDED", "The file is too large for this server"),
}


def test_refusals_are_said_in_words(
    server: ServerProcess, visit: Visit, make_source: MakeSource
) -> None:
    """Those that pass are waited for."""
    page = visit(root_of(server))
    refusing = True

    def answer(route: Route) -> None:
        request = route.request
        if refusing and request.method == "POST":
            status = int(request.headers["upload-length"])
            route.fulfill(status=status, body=f"{REFUSALS[status][0]}: a sentence for machines\n")
        else:
            route.continue_()

    page.page.route("**/files/", answer)
    page.give(*(make_source(status, f"{status}.bin").path for status in REFUSALS))
    for status, (_, words) in REFUSALS.items():
        expect(page.row(f"{status}.bin")).to_contain_text(words, timeout=WAIT)
    assert page.page.get_by_text("a sentence for machines").count() == 0
    refusing = False
    page.press("Try again", "413.bin")
    page.wait_text("4 of 4 uploaded")
