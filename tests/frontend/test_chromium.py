"""UploadManager in pages of headless Chromium, of another origin than the server: actions of users, and failures."""

from __future__ import annotations

import pytest

from tests.auth.people import access, bearer
from tests.clients.content import MIB, SourceFile, sha256_of_file
from tests.clients.stalls import stalled_links
from tests.frontend.conftest import MakeSource
from tests.frontend.pages import UploadPage
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.ietf import Ietf
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until

SOON = {"min": 50, "max": 400}
STALL_AT = MIB
HEADS = MIB // 16
STALLING = Plan(up=Way(stall_after=STALL_AT))


def assert_stored(server: ServerProcess, url: str, source: SourceFile) -> None:
    assert sha256_of_file(server.data_file(id_of(path_of(url)))) == source.sha256


def begin(page: UploadPage, server: ServerProcess, proxy: FaultProxy, source: SourceFile) -> str:
    """An upload that stands still in the middle; its id. What comes next passes the proxy untouched."""
    before = set(Tus(server).data_files())
    page.open(endpoint=proxy.url(), accessToken=access(), retry=SOON)
    page.add(source.path)
    stalled_links(proxy)

    def has_some(upload_id: str) -> bool:
        # All but the requests' heads, which have come this way, too.
        return server.data_file(upload_id).stat().st_size >= STALL_AT - HEADS

    wait_until(
        lambda: any(map(has_some, set(Tus(server).data_files()) - before)),
        "all that came to be stored",
        60,
    )
    [upload_id] = set(Tus(server).data_files()) - before
    proxy.heal()
    return upload_id


def test_an_upload_with_progress(
    page: UploadPage, guarded: ServerProcess, make_source: MakeSource
) -> None:
    source = make_source(3 * MIB)
    with FaultProxy(guarded.address, default=Plan(up=Way(delay=0.1))) as proxy:
        page.open(endpoint=proxy.url(), accessToken=access())
        page.add(source.path, study="17")
        page.wait_state("completed")
        [url] = page.urls().values()
    assert page.states() == ["queued", "uploading", "completed"]
    assert_stored(guarded, url, source)
    told = [event for event in page.seen() if event["event"] == "progress"]
    sent = [event["sent"] for event in told]
    assert len(sent) > 3
    assert sent == sorted(sent)
    assert sent[-1] == told[-1]["total"] == source.size
    assert any(event["bytesPerSecond"] for event in told)
    expected = {"filename": "source.bin", "filetype": "application/octet-stream", "study": "17"}
    assert Tus(guarded).info(path_of(url))["MetaData"] == expected
    assert page.methods() == ["POST", "PATCH"]
    assert page.value("manager.resumable()") == []


def test_a_file_that_is_added_twice_at_the_same_time_is_uploaded_once(
    page: UploadPage, own_guarded: ServerProcess, make_source: MakeSource
) -> None:
    page.open(endpoint=own_guarded.url, accessToken=access())
    page.choose(make_source(MIB).path)
    both = "Promise.all([1, 2].map(() => manager.add(chosen()[0])))"
    assert page.value(f"{both}.then(([one, other]) => one === other)")
    page.wait_state("completed")
    assert page.methods() == ["POST", "PATCH"]


def test_pause_and_resume(
    page: UploadPage, guarded: ServerProcess, make_source: MakeSource
) -> None:
    source = make_source(4 * MIB)
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        begin(page, guarded, proxy, source)
        page.all("source.bin", "pause")
        page.wait_state("paused")
        page.all("source.bin", "resume")
        page.wait_state("completed")
        [url] = page.urls().values()
    assert page.methods() == ["POST", "PATCH", "HEAD", "PATCH"]
    first, second = page.offsets()
    assert first == 0 < second < source.size
    assert_stored(guarded, url, source)


def test_a_reload_goes_on_where_it_stood(
    page: UploadPage, guarded: ServerProcess, make_source: MakeSource
) -> None:
    source = make_source(4 * MIB)
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        upload_id = begin(page, guarded, proxy, source)
        page.open(endpoint=proxy.url(), accessToken=access(), retry=SOON)
        page.wait_left()
        [left] = page.value("manager.resumable()")
        assert (left["name"], left["size"]) == (source.path.name, source.size)
        assert left["url"].endswith(upload_id)
        # Nothing happens until the user has chosen the file again; another one does not do.
        page.choose(make_source(4 * MIB + 1, "other.bin").path)
        kind = page.value(
            f"manager.resume('{left['id']}', chosen()[0]).catch((error) => error.kind)"
        )
        assert kind == "source"
        page.add(source.path)
        page.wait_state("completed")
        [url] = page.urls().values()
        sent = sum(link.up_bytes for link in proxy.links)
    assert url == left["url"]
    assert [method for method in page.methods() if method != "POST"] == ["PATCH", "HEAD", "PATCH"]
    first, second = page.offsets()
    assert first == 0
    assert second >= STALL_AT // 2
    assert sent < source.size + MIB // 2, "bytes that had arrived were sent again"
    assert_stored(guarded, url, source)


def test_two_tabs_do_not_take_it_from_each_other(
    page: UploadPage, guarded: ServerProcess, make_source: MakeSource
) -> None:
    source = make_source(4 * MIB)
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        begin(page, guarded, proxy, source)
        other = UploadPage(page.context.new_page(), page.url)
        other.open(endpoint=proxy.url(), accessToken=access(), retry=SOON)
        assert other.value("manager.resumable()") == []
        other.value("void manager.on('released', (id) => (window.released = id))")
        other.choose(source.path)
        assert other.value("add({}).catch((error) => error.kind)") == "elsewhere"
        page.page.close()
        other.wait("() => window.released")
        assert other.value("manager.resumable().then(([{ id }]) => id === window.released)")
        other.add(source.path)
        other.wait_state("completed")
        [url] = other.urls().values()
    assert_stored(guarded, url, source)


def test_cancelling_removes_it_at_the_server(
    page: UploadPage, guarded: ServerProcess, make_source: MakeSource
) -> None:
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        upload_id = begin(page, guarded, proxy, make_source(4 * MIB))
        assert page.value("manager.uploads[0].cancel()") is True
    assert page.states()[-1] == "cancelled"
    page.wait_answered(lambda answers: answers[-1:] == [("DELETE", 204)])
    assert upload_id not in Tus(guarded).data_files()
    assert page.value("manager.resumable()") == []


def test_where_nothing_can_be_kept_uploads_go_on(
    page: UploadPage, guarded: ServerProcess, make_source: MakeSource
) -> None:
    source = make_source(MIB)
    page.page.add_init_script("IDBFactory.prototype.open = () => { throw new Error('no room') }")
    page.open(endpoint=guarded.url, accessToken=access())
    page.add(source.path)
    page.wait_state("completed")
    [url] = page.urls().values()
    assert_stored(guarded, url, source)
    assert "Error: no room" in page.value("warnings")


def test_without_a_network_it_waits_and_goes_on_at_once(
    page: UploadPage, guarded: ServerProcess, make_source: MakeSource
) -> None:
    source = make_source(4 * MIB)
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        before = set(Tus(guarded).data_files())
        # An attempt that fails would be repeated no sooner than in an hour.
        hour = 3_600_000
        page.open(endpoint=proxy.url(), accessToken=access(), retry={"min": hour, "max": hour})
        page.add(source.path)
        stalled_links(proxy)
        proxy.heal()
        page.context.set_offline(True)
        page.wait("() => manager.uploads[0].waitingFor === 'network'")
        asked = len(page.requests)
        other = make_source(1000, "other.bin")
        page.add(other.path)
        page.wait("() => manager.uploads[1].waitingFor === 'network'")
        assert len(page.requests) == asked
        page.context.set_offline(False)
        page.wait_state("completed", count=2)
        urls = page.urls()
    assert set(urls) == {"source.bin", "other.bin"}
    assert len(set(Tus(guarded).data_files()) - before) == 2
    assert_stored(guarded, urls["source.bin"], source)
    assert_stored(guarded, urls["other.bin"], other)


# -- duplicates ------------------------------------------------------------------------------------


def earlier(server: ServerProcess, source: SourceFile, study: str, count: int) -> str:
    """The path of an upload of the same study that was made elsewhere and has `count` bytes."""
    tus = Tus(server)
    given = {"filename": source.path.name, "filetype": "application/octet-stream", "study": study}
    headers = {**bearer(access()), "Upload-Metadata": metadata(**given)}
    path = tus.new(source.size, headers=headers)
    assert tus.patch(path, 0, source.path.read_bytes()[:count], bearer(access())).status == 204
    return path


def test_a_duplicate_is_resumed(
    page: UploadPage, checking: ServerProcess, make_source: MakeSource
) -> None:
    source = make_source(MIB)
    path = earlier(checking, source, "resumed", 1000)
    page.open(endpoint=checking.url, accessToken=access(), answer="resume")
    page.add(source.path, study="resumed")
    page.wait_state("completed")
    [asked] = page.value("asked")
    assert (asked["state"], asked["canResume"], asked["offset"]) == ("pending", True, 1000)
    [url] = page.urls().values()
    assert path_of(url) == path
    assert page.offsets() == [1000]
    assert_stored(checking, url, source)


def test_a_duplicate_is_forced(
    page: UploadPage, checking: ServerProcess, make_source: MakeSource
) -> None:
    source = make_source(MIB)
    path = earlier(checking, source, "forced", source.size)
    page.open(endpoint=checking.url, accessToken=access(), answer="force")
    page.add(source.path, study="forced")
    page.wait_state("completed")
    [asked] = page.value("asked")
    assert (asked["state"], asked["canResume"]) == ("complete", False)
    page.wait_answered(lambda answers: answers[:2] == [("POST", 409), ("POST", 201)])
    [url] = page.urls().values()
    assert path_of(url) != path
    assert_stored(checking, url, source)


def test_a_duplicate_is_left(
    page: UploadPage, checking: ServerProcess, make_source: MakeSource
) -> None:
    source = make_source(1000)
    earlier(checking, source, "left", source.size)
    before = Tus(checking).data_files()
    page.open(endpoint=checking.url, accessToken=access(), answer="give-up")
    page.add(source.path, study="left")
    page.wait_state("failed")
    assert (page.seen()[-1]["kind"], page.seen()[-1]["code"]) == (
        "duplicate",
        "ERR_DUPLICATE_UPLOAD",
    )
    page.wait_answered(lambda answers: answers == [("POST", 409)])
    assert Tus(checking).data_files() == before


# -- tokens ----------------------------------------------------------------------------------------


def test_long_uploads_with_tokens_that_live_two_seconds(
    page: UploadPage, short_lived: ServerProcess, make_source: MakeSource
) -> None:
    """Renewals on the way, a line that is cut for longer than a token lives, and a server that is killed."""
    names = [f"{number}.bin" for number in range(4)]
    sources = {name: make_source(600_000 + len(name), name) for name in names}
    first = Plan(up=Way(rate=90_000, cut_after=250_000, cut="rst"))
    with FaultProxy(short_lived.address, default=first) as proxy:
        page.open(endpoint=proxy.url(), accessToken=access(), retry=SOON, concurrency=4)
        page.add(*(source.path for source in sources.values()))
        page.wait_sent(0.3)
        proxy.default = Plan(up=Way(cut_after=0, cut="rst"))
        for name in names:
            page.wait(
                "name => seen.some((each) => each.name === name && each.waitingFor === 'retry')",
                name,
            )
        page.page.wait_for_timeout(2_500)
        proxy.default = Plan(up=Way(rate=90_000))
        page.wait_sent(0.6)
        short_lived.kill9()
        page.page.wait_for_timeout(2_500)
        short_lived.restart()
        page.wait_state("completed", count=4)
        urls = page.urls()
    assert "failed" not in page.states()
    page.wait_answered(
        lambda answers: answers.count(("POST", 201)) == 4 and answers.count(("POST", 200)) >= 8
    )
    for name, source in sources.items():
        assert_stored(short_lived, urls[name], source)


def test_a_reload_beyond_the_life_of_the_token(
    page: UploadPage, short_lived: ServerProcess, make_source: MakeSource
) -> None:
    """The stored upload token is renewed within the grace period, as the page has no access token any more."""
    source = make_source(4 * MIB)
    with FaultProxy(short_lived.address, default=STALLING) as proxy:
        begin(page, short_lived, proxy, source)
        page.page.goto("about:blank")
        page.page.wait_for_timeout(2_500)
        page.open(endpoint=proxy.url(), accessToken=None, retry=SOON)
        page.wait_left()
        page.add(source.path)
        page.wait_state("completed")
        [url] = page.urls().values()
    assert_stored(short_lived, url, source)


@pytest.mark.parametrize("protocol", ["ietf-draft-03", "ietf-draft-05"])
def test_R22_the_ietfs_protocol(
    page: UploadPage, guarded: ServerProcess, make_source: MakeSource, protocol: str
) -> None:
    """Over connections that are cut; an empty file, which needs tus, too."""
    source, empty = make_source(3 * MIB), make_source(0, "empty.bin")
    with FaultProxy(guarded.address, default=Plan(up=Way(cut_after=MIB))) as proxy:
        page.open(endpoint=proxy.url(), accessToken=access(), retry=SOON, protocol=protocol)
        page.add(source.path, empty.path)
        page.wait_state("completed", count=2)
        urls = page.urls()
    assert_stored(guarded, urls["source.bin"], source)
    assert_stored(guarded, urls["empty.bin"], empty)
    versions = {
        headers["upload-draft-interop-version"]
        for method, headers in page.requests
        if method == "PATCH"
    }
    assert versions == {"5" if protocol == "ietf-draft-03" else "6"}
    for url in urls.values():
        head = Ietf(guarded, 6).head(path_of(url), bearer(access()))
        assert head["Upload-Complete"] == "?1"
