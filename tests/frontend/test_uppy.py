"""Uppy and tus-js-client in Chromium: with this package's plugin and options, and with the snippets of docs/tokens.md."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Response

from tests.auth.people import SECRET, access, bearer
from tests.clients.content import MIB, SourceFile, sha256_of_file
from tests.clients.stalls import stalled_links
from tests.conftest import MakeServer
from tests.docs.blocks import blocks
from tests.frontend.building import DIST
from tests.frontend.bundling import bundle
from tests.frontend.conftest import MakeSource
from tests.frontend.pages import WAIT, Site
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until

HERE = Path(__file__).parent
KINDS = ("uppy", "uppy-tus", "tus")
HASTE = {"min": 100, "max": 500}
"""Milliseconds between the attempts of an UploadManager."""
ENDPOINT = "https://uploads.example/files/"
HTML = '<link rel="icon" href="data:," /><input type="file" id="file" multiple /><script type="module" src="{}"></script>'


class Application:
    """A page of one of the kinds of `applications.mjs`, or of the documentation."""

    def __init__(self, context: BrowserContext, site: Site, lifetime: float | None = None) -> None:
        self.page: Page = context.new_page()
        self.url = site.url
        site.answers["/access-token"] = self.token
        self.lifetime = lifetime
        self.errors: list[str] = []
        self.answers: list[tuple[str, int]] = []
        self.lines: list[str] = []
        self.page.set_default_timeout(WAIT)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("response", self._answered)
        self.page.on("console", lambda message: self.lines.append(message.text))
        self.rejected: list[str] = []

    def token(self) -> str:
        """An access token, as the application of the page issues it."""
        if self.rejected:
            return self.rejected.pop()
        if self.lifetime is None:
            return access()
        now = time.time()
        return access(iat=int(now), exp=now + self.lifetime)

    def open(self, kind: str, endpoint: str, **options: object) -> None:
        """Loads the page (again)."""
        self.page.goto(f"{self.url}/applications.html")
        self.page.wait_for_function("window.ready")
        self.page.evaluate(
            "window.begin", {"kind": kind, "endpoint": endpoint, "answer": "give-up", **options}
        )

    def add(self, *files: Path, **given: str) -> None:
        """Chooses files and uploads them."""
        self.page.set_input_files("#file", [str(file) for file in files])
        self.page.evaluate("metadata => void window.add(metadata)", given)

    def wait(self, event: str, count: int = 1) -> dict[str, str]:
        """The event, when it was seen so often."""
        found = "([event, count]) => seen.filter((each) => each.event === event).length >= count"
        try:
            self.page.wait_for_function(found, arg=[event, count])
        except Exception as problem:
            told = [each for each in self.seen() if each["event"] != "progress"]
            raise AssertionError(
                f"no {event}: {json.dumps(told)} {self.answers} {self.errors} {self.lines}"
            ) from problem
        return [each for each in self.seen() if each["event"] == event][count - 1]

    def wait_line(self, beginning: str) -> str:
        """The rest of the line that the page wrote to its console, when it did."""
        deadline = time.monotonic() + WAIT / 1000
        while not (found := [line for line in self.lines if line.startswith(beginning)]):
            assert time.monotonic() < deadline, (self.lines, self.answers, self.errors)
            self.page.wait_for_timeout(20)
        return found[0].removeprefix(beginning)

    def seen(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = self.page.evaluate("window.seen")
        return found

    def _answered(self, response: Response) -> None:
        if not response.url.startswith(self.url) and response.request.method != "OPTIONS":
            self.answers.append((response.request.method, response.status))


@pytest.fixture(scope="module")
def applications(built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("applications")
    bundle(HERE / "applications.mjs", directory / "applications.js")
    shutil.copy(DIST / "digest-worker.js", directory)
    (directory / "applications.html").write_text(HTML.format("applications.js"))
    for number, name in enumerate(("renewing", "tus", "uppy")):
        code = blocks("docs/tokens.md", "js")[number]
        if name != "renewing":
            assert ENDPOINT in code
        # The server is another one in each test.
        (directory / f"{name}.js").write_text(code.replace(f"'{ENDPOINT}'", "window.endpoint"))
        if name != "renewing":
            bundle(directory / f"{name}.js", directory / f"{name}.bundle.js")
            (directory / f"{name}.html").write_text(HTML.format(f"{name}.bundle.js"))
    with Site(directory) as site:
        yield site


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def application(context: BrowserContext, applications: Site) -> Iterator[Application]:
    application = Application(context, applications)
    yield application
    assert application.errors == []


def assert_stored(server: ServerProcess, url: str, source: SourceFile) -> None:
    assert sha256_of_file(server.data_file(id_of(path_of(url)))) == source.sha256


def count_with(server: ServerProcess, count: int) -> int:
    """How many uploads have so many bytes."""
    files = Tus(server).data_files()
    return sum(server.data_file(name).stat().st_size >= count for name in files)


def has_bytes(server: ServerProcess, count: int) -> bool:
    return count_with(server, count) > 0


@pytest.fixture
def strict(make_server: MakeServer) -> ServerProcess:
    """A server to which access tokens are expired at their very second, and upload tokens after two."""
    flags = ("--jwt-leeway", "0", "--upload-token-ttl", "2s", "--upload-token-refreshes", "10000")
    return make_server("--auth", "jwt", *flags, env={"TUSD_JWT_SECRET": SECRET})


def test_no_page_dies_of_a_token(
    context: BrowserContext, applications: Site, strict: ServerProcess, make_source: MakeSource
) -> None:
    """Every token expires on the way, the connection is lost, and the server is killed; one upload all the same.

    For pages of all kinds at once, as most of it is waiting.
    """
    sources = {kind: make_source(900_000, f"{kind}.bin") for kind in KINDS}
    pages = {kind: Application(context, applications, lifetime=2.0) for kind in KINDS}
    with FaultProxy(strict.address, default=Plan(up=Way(rate=100_000))) as proxy:
        for kind, page in pages.items():
            page.open(kind, proxy.url(), chunkSize=100_000, retryDelays=[500] * 40, retry=HASTE)
        for kind, page in pages.items():
            page.add(sources[kind].path)
        wait_until(lambda: count_with(strict, 150_000) == len(KINDS), "some of each", 60)
        proxy.default = Plan(up=Way(cut_after=0, cut="rst"))
        strict.kill9()
        pages["tus"].page.wait_for_timeout(2_100)
        strict.restart()
        proxy.default = Plan(up=Way(rate=1_000_000))
        urls = {kind: page.wait("success")["url"] for kind, page in pages.items()}
    for kind, page in pages.items():
        assert_stored(strict, urls[kind], sources[kind])
        assert page.errors == []
        assert "error" not in [event["event"] for event in page.seen()]
        assert ("POST", 200) in page.answers, "the first upload token was good until the end"
    assert len(Tus(strict).data_files()) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rejected_token_is_replaced(
    application: Application, guarded: ServerProcess, make_source: MakeSource, kind: str
) -> None:
    """The first token is refused at the creation; the application is asked for another."""
    source = make_source(100_000, f"{kind}.bin")
    expired = access(exp=int(time.time()) - 100)
    application.rejected = [expired]
    application.open(kind, guarded.url)
    application.add(source.path)
    assert_stored(guarded, application.wait("success")["url"], source)
    first, second = application.page.evaluate("window.tokens")[:2]
    assert (first, second) == (None, expired)
    assert ("POST", 401) in application.answers


def earlier(server: ServerProcess, source: SourceFile, kind: str, count: int) -> str:
    """The path of an upload of the same that was made elsewhere and has `count` bytes."""
    given = {"filename": source.path.name, "filetype": "application/octet-stream", "study": "17"}
    if kind == "uppy-tus":
        # What Uppy's own plugin sends besides.
        given |= {"name": source.path.name, "type": "application/octet-stream"}
    tus = Tus(server)
    headers = {**bearer(access()), "Upload-Metadata": metadata(**given)}
    path = tus.new(source.size, headers=headers)
    assert tus.patch(path, 0, source.path.read_bytes()[:count], bearer(access())).status == 204
    return path


@pytest.mark.parametrize("answer", ["resume", "force", "give-up"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_duplicate(
    application: Application,
    checking: ServerProcess,
    make_source: MakeSource,
    kind: str,
    answer: str,
) -> None:
    source = make_source(200_000, f"{kind}-{answer}.bin")
    resumes = answer == "resume"
    path = earlier(checking, source, kind, 1000 if resumes else source.size)
    before = Tus(checking).data_files()
    application.open(kind, checking.url, answer=answer)
    application.add(source.path, study="17")
    if answer == "give-up":
        message = application.wait("error")["message"]
        assert "the same metadata and length was finished on " in message
        assert Tus(checking).data_files() == before
    else:
        url = application.wait("success")["url"]
        assert (path_of(url) == path) is resumes
        assert_stored(checking, url, source)
    [asked] = application.page.evaluate("window.asked")
    assert asked["filename"] == source.path.name
    assert asked["state"] == ("pending" if resumes else "complete")


@pytest.mark.parametrize("kind", KINDS)
def test_a_reload_resumes(
    application: Application, own_guarded: ServerProcess, make_source: MakeSource, kind: str
) -> None:
    source = make_source(2 * MIB)
    with FaultProxy(own_guarded.address, default=Plan(up=Way(stall_after=MIB))) as proxy:
        application.open(kind, proxy.url())
        application.add(source.path)
        stalled_links(proxy)
        wait_until(lambda: has_bytes(own_guarded, MIB - MIB // 16), "all that came", 60)
        proxy.heal()
        application.open(kind, proxy.url())
        if kind == "uppy":
            # It waits for a second until the page before it has let go.
            application.page.wait_for_function(
                "() => uppy.getPlugin('TusdPy').manager.resumable().then((left) => left.length === 1)"
            )
        application.add(source.path)
        url = application.wait("success")["url"]
        sent = sum(link.up_bytes for link in proxy.links)
    assert_stored(own_guarded, url, source)
    assert Tus(own_guarded).data_files() == [id_of(path_of(url))]
    assert sent < source.size + MIB // 2, "bytes that had arrived were sent again"


@pytest.mark.parametrize("kind", ["uppy-tus", "tus"])
def test_a_refused_head_begins_no_new_upload(
    application: Application, own_guarded: ServerProcess, make_source: MakeSource, kind: str
) -> None:
    """tus-js-client by itself takes a HEAD that is refused for whatever reason for an upload that is gone."""
    source = make_source(2 * MIB)
    with FaultProxy(own_guarded.address, default=Plan(up=Way(cut_after=MIB, cut="rst"))) as proxy:
        refused = iter([401, 503, 403])

        def answer(route: object, request: object) -> None:
            status = next(refused, None) if request.method == "HEAD" else None  # type: ignore[attr-defined]
            if status == 403:
                proxy.heal()
            if status in (None, 403):
                route.continue_()  # type: ignore[attr-defined]
            else:
                allowed = {"Access-Control-Allow-Origin": "*"}
                route.fulfill(status=status, headers=allowed)  # type: ignore[attr-defined]

        application.page.route(f"{proxy.url()}**", answer)
        application.open(kind, proxy.url(), retryDelays=[0, 10, 10, 10, 10, 10, 10, 10])
        application.add(source.path)
        url = application.wait("success")["url"]
    assert_stored(own_guarded, url, source)
    assert Tus(own_guarded).data_files() == [id_of(path_of(url))]


def test_pause_resume_and_removal_in_uppy(
    application: Application, own_guarded: ServerProcess, make_source: MakeSource
) -> None:
    source, other = make_source(2 * MIB), make_source(2 * MIB, "other.bin")
    with FaultProxy(own_guarded.address, default=Plan(up=Way(stall_after=MIB))) as proxy:
        application.open("uppy", proxy.url())
        application.add(source.path, other.path)
        stalled_links(proxy, 2)
        proxy.heal()
        application.page.evaluate("uppy.pauseAll()")
        paused = "uppy.getPlugin('TusdPy').manager.uploads.every(({ state }) => state === 'paused')"
        application.page.wait_for_function(paused)
        # Only one of them; the other is removed, here and at the server.
        application.page.evaluate(
            """() => {
              for (const { id, name } of uppy.getFiles()) {
                if (name === 'other.bin') uppy.removeFile(id)
                else uppy.pauseResume(id)
              }
            }"""
        )
        url = application.wait("success")["url"]
        application.wait("removed")
        wait_until(
            lambda: Tus(own_guarded).data_files() == [id_of(path_of(url))], "the removal", 60
        )
    assert_stored(own_guarded, url, source)
    assert application.page.evaluate("uppy.getPlugin('TusdPy').manager.resumable()") == []


def test_a_failed_file_is_retried_in_uppy(
    application: Application, own_guarded: ServerProcess, make_source: MakeSource
) -> None:
    """Uppy's own button; `retryAll` goes on where it stood."""
    source = make_source(200_000)
    application.open("uppy", own_guarded.url)
    application.rejected = ["no token"] * 20
    application.add(source.path)
    application.wait("error")
    application.rejected = []
    application.page.evaluate("void uppy.retryAll()")
    assert_stored(own_guarded, application.wait("success")["url"], source)


def test_the_documented_snippets_renew_tokens_of_five_seconds(
    context: BrowserContext, applications: Site, strict: ServerProcess, make_source: MakeSource
) -> None:
    """The line is cut after the token has expired."""
    pages = {name: Application(context, applications, lifetime=5.0) for name in ("tus", "uppy")}
    slow = Plan(up=Way(rate=100_000, cut_after=600_000, cut="rst"))
    lines = {name: f"{name}.bin: " for name in pages}
    sources = {name: make_source(MIB, f"{name}.bin") for name in pages}
    with FaultProxy(strict.address, default=slow) as proxy:
        for name, page in pages.items():
            page.page.add_init_script(f"window.endpoint = {json.dumps(proxy.url())}")
            page.page.goto(f"{applications.url}/{name}.html")
            page.page.set_input_files("#file", str(sources[name].path))
        wait_until(lambda: count_with(strict, 100_000) == len(pages), "the first bytes", 60)
        proxy.default = Plan()
        for name, page in pages.items():
            page.wait_line(lines[name])
    for name, page in pages.items():
        assert page.errors == []
        assert any(status == 401 for _, status in page.answers), page.answers
        assert_stored(strict, page.wait_line(lines[name]), sources[name])
    assert len(Tus(strict).data_files()) == len(pages)


@pytest.mark.parametrize("worker", [True, False], ids=["worker", "no worker"])
def test_a_digest_tells_the_same_content(
    application: Application, make_server: MakeServer, make_source: MakeSource, worker: bool
) -> None:
    """Under another name; a larger file than the option allows is sent without."""
    env = {"TUSD_JWT_SECRET": SECRET, "TUSD_DUPLICATES": "on"}
    server = make_server("--auth", "jwt", "--duplicate-fingerprint-key", "sha256", env=env)
    source, large = make_source(5_000_000), make_source(5_000_001, "large.bin")
    same = source.path.with_name("other name.bin")
    shutil.copy(source.path, same)
    if not worker:
        application.page.route("**/digest-worker.js", lambda route: route.abort())
    started: list[str] = []
    application.page.on("worker", lambda found: started.append(found.url))
    application.open("uppy", server.url, digest={"maxSize": source.size})
    application.add(source.path, large.path)
    application.wait("success", 2)
    urls = {event["name"]: event["url"] for event in application.seen() if "url" in event}
    tus = Tus(server)
    assert f"'sha256': '{source.sha256}'" in str(tus.info(path_of(urls["source.bin"])))
    assert "sha256" not in str(tus.info(path_of(urls["large.bin"])))
    application.add(same)
    told = application.wait("error")["message"]
    assert "an upload with the same sha256 and length was finished on " in told
    assert bool(started) is worker
    assert len(tus.data_files()) == 2
