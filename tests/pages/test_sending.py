"""What `/` answers to whom, and how scripts and styles are sent."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.frontend.building import build_pages
from tests.support.server import ROOT, ServerProcess
from tests.support.tus import Tus
from tusd_py.settings.model import Settings
from tusd_py.web.pages.built import BUILT
from tusd_py.web.pages.sending import prefers_html
from tusd_py.web.pages.upload import is_on

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
HTML = {"Accept": BROWSER}
GREETING = b"a resumable upload server. Uploads are created by POST to"


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """The pages are built."""
    build_pages()


@pytest.fixture(scope="module")
def server(built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with default settings for all tests of this module, started with pages."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "uploads") as process:
        yield process


def settings_of(body: bytes) -> dict[str, object]:
    """What the page's script is told."""
    found = re.search(r'<meta name="tusd-py" content="([^"]*)"', body.decode())
    assert found
    told: dict[str, object] = json.loads(unescape(found[1]))
    return told


def assets_of(body: bytes) -> list[str]:
    """The paths of the script and the style, seen from /."""
    return [f"/{path}" for path in re.findall(r'(?:src|href)="(_pages/[^"]+)"', body.decode())]


class TestIndex:
    @pytest.mark.parametrize("accept", ["*/*", "text/plain", "application/json", ""])
    def test_is_a_line_of_text_for_programs(self, tus: Tus, accept: str) -> None:
        answer = tus.request("GET", "/", {"Accept": accept} if accept else {})
        assert answer.status == 200
        assert GREETING in answer.body
        assert answer["Content-Type"].startswith("text/plain")

    def test_is_a_page_for_browsers(self, tus: Tus) -> None:
        answer = tus.request("GET", "/", HTML)
        assert answer["Content-Type"] == "text/html; charset=utf-8"
        assert answer["Vary"] == "Accept, Accept-Encoding"
        assert settings_of(answer.body)["endpoint"] == "files/"
        assert len(assets_of(answer.body)) == 2

    def test_allows_no_inline_code_and_no_frames(self, tus: Tus) -> None:
        answer = tus.request("GET", "/", HTML)
        policy = answer["Content-Security-Policy"]
        assert "unsafe" not in policy
        for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"):
            assert part in policy.split("; ")
        assert not re.search(rb"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", answer.body)
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert answer["Referrer-Policy"] == "no-referrer"

    def test_is_asked_again_only_if_it_changed(self, tus: Tus) -> None:
        first = tus.request("GET", "/", HTML)
        assert first["Cache-Control"] == "no-cache"
        again = tus.request("GET", "/", {**HTML, "If-None-Match": first["ETag"]})
        assert (again.status, again.body) == (304, b"")
        assert again["ETag"] == first["ETag"]
        assert tus.request("GET", "/", {**HTML, "If-None-Match": '"else"'}).status == 200

    def test_has_the_same_head(self, tus: Tus) -> None:
        get, head = (tus.request(method, "/", HTML) for method in ("GET", "HEAD"))
        assert head.body == b""
        assert head["Content-Length"] == str(len(get.body))
        assert head["ETag"] == get["ETag"]

    def test_takes_no_uploads(self, tus: Tus) -> None:
        assert tus.request("POST", "/", HTML).status == 405


class TestParts:
    def test_are_kept_for_ever_under_names_of_their_content(self, tus: Tus) -> None:
        for path in assets_of(tus.request("GET", "/", HTML).body):
            answer = tus.request("GET", path)
            assert answer.status == 200
            assert "immutable" in answer["Cache-Control"]
            assert answer["X-Content-Type-Options"] == "nosniff"
            kind = "text/javascript" if path.endswith(".js") else "text/css"
            assert answer["Content-Type"] == f"{kind}; charset=utf-8"

    def test_are_compressed_for_those_who_can_read_it(self, tus: Tus) -> None:
        for path in assets_of(tus.request("GET", "/", HTML).body):
            plain = tus.request("GET", path, {"Accept-Encoding": "identity"})
            assert "content-encoding" not in {name.lower() for name, _ in plain.headers}
            zipped = tus.request("GET", path, {"Accept-Encoding": "gzip, br;q=0"})
            assert zipped["Content-Encoding"] == "gzip"
            assert gzip.decompress(zipped.body) == plain.body
            small = tus.request("GET", path, {"Accept-Encoding": "gzip, deflate, br, zstd"})
            assert small["Content-Encoding"] == "br"
            assert len(small.body) < len(plain.body)
            assert len({each["ETag"] for each in (plain, zipped, small)}) == 3
            again = tus.request(
                "GET", path, {"Accept-Encoding": "br", "If-None-Match": small["ETag"]}
            )
            assert again.status == 304

    def test_a_page_is_small(self, tus: Tus) -> None:
        page = tus.request("GET", "/", HTML).body
        parts = [tus.request("GET", path, {"Accept-Encoding": "gzip"}) for path in assets_of(page)]
        assert len(page) + sum(len(part.body) for part in parts) < 80_000

    @pytest.mark.parametrize(
        "name", ["no.js", "sources.sha256", "upload.html", "..%2fbuilt.py", "../built.py", ""]
    )
    def test_there_are_no_others(self, tus: Tus, name: str) -> None:
        assert tus.request("GET", f"/_pages/{name}").status == 404


def test_who_prefers_html() -> None:
    assert prefers_html(BROWSER)
    assert prefers_html("TEXT/HTML")
    assert prefers_html("application/xhtml+xml;q=0.1, */*")
    assert not prefers_html("*/*")
    assert not prefers_html("text/html;q=0")
    assert not prefers_html("text/html;q=0.5, text/plain")
    assert not prefers_html("")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("uploads.example", False),
    ],
)
def test_by_default_there_are_pages_only_on_this_machine(host: str, expected: bool) -> None:
    assert is_on(Settings(host=host)) is expected
    assert is_on(Settings(host=host, pages="on"))
    assert not is_on(Settings(host=host, pages="off"))


def test_by_default_there_are_pages_on_a_unix_socket(tmp_path: Path) -> None:
    assert is_on(Settings(host="0.0.0.0", unix_sock=tmp_path / "socket"))


class TestSettings:
    def test_off(self, make_server: MakeServer) -> None:
        tus = Tus(make_server(env={"TUSD_PAGES": "off"}))
        answer = tus.request("GET", "/", HTML)
        assert answer["Content-Type"].startswith("text/plain")
        assert answer.body.endswith(b"/files/\n")
        assert tus.request("GET", "/_pages/upload.js").status == 404

    def test_on_every_address(self, make_server: MakeServer) -> None:
        away = make_server("--host", "0.0.0.0")
        assert Tus(away).request("GET", "/", HTML)["Content-Type"].startswith("text/plain")
        shown = make_server("--host", "0.0.0.0", "--pages", "on")
        assert Tus(shown).request("GET", "/", HTML)["Content-Type"].startswith("text/html")

    def test_beside_uploads_under_the_root(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--base-path", "/"))
        answer = tus.request("GET", "/", HTML)
        assert settings_of(answer.body)["endpoint"] == "./"
        assert [tus.request("GET", path).status for path in assets_of(answer.body)] == [200, 200]
        path = tus.finished(b"bytes")
        assert tus.get(path).body == b"bytes"

    def test_where_tokens_come_from(self, make_server: MakeServer) -> None:
        url = "https://login.example:8443/token?for=uploads"
        answer = Tus(make_server("--pages-token-url", url)).request("GET", "/", HTML)
        assert settings_of(answer.body)["tokenUrl"] == url
        sources = "connect-src 'self' https://login.example:8443"
        assert sources in answer["Content-Security-Policy"].split("; ")

    @pytest.mark.parametrize(
        "url",
        [
            "//login.example/token",
            "token",
            "javascript:alert(1)",
            "https://me:secret@login.example/",
            "https://login.example;script-src/",
            "https://login.example,*/",
        ],
    )
    def test_a_token_url_that_makes_no_sense(self, url: str) -> None:
        with pytest.raises(ValueError, match="pages_token_url"):
            Settings(pages_token_url=url)


def test_a_server_without_pages_says_how_to_get_them(tmp_path: Path) -> None:
    """The package as it is before anything is built."""
    for package in ("tusd_py", "hooks", "workers"):
        shutil.copytree(
            ROOT / package,
            tmp_path / package,
            ignore=shutil.ignore_patterns("__pycache__", "built"),
        )
    paths = {"PYTHONPATH": f"{tmp_path}:{tmp_path / 'hooks'}:{tmp_path / 'workers'}"}
    with ServerProcess(tmp_path / "uploads", env=paths) as server:
        answer = Tus(server).request("GET", "/", HTML)
        assert answer.status == 200
        assert GREETING in answer.body
        assert b"`make pages`" in answer.body
        assert b"`make pages`" not in Tus(server).request("GET", "/").body
        assert any("`make pages`" in line for line in server.lines)


def test_the_build_is_what_the_sources_say() -> None:
    program = [sys.executable, str(ROOT / "frontend" / "build.py")]
    assert subprocess.run([*program, "--fresh"], check=False).returncode == 0


def test_pages_are_built_without_the_packages_of_tests(tmp_path: Path) -> None:
    """`make serve` downloads no more than `frontend/building` says."""
    frontend = tmp_path / "frontend"
    for name in ("building", "pages", "src", "build.py", "package.json"):
        copy = shutil.copytree if (ROOT / "frontend" / name).is_dir() else shutil.copy2
        copy(ROOT / "frontend" / name, frontend / name)
    (tmp_path / "tusd_py" / "web" / "pages").mkdir(parents=True)
    done = subprocess.run([sys.executable, frontend / "build.py"], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    built = tmp_path / "tusd_py" / "web" / "pages" / "built"
    assert sorted(os.listdir(built)) == sorted(os.listdir(BUILT))


def test_pages_are_built_with_the_versions_that_are_tested() -> None:
    locks = [ROOT / "frontend" / "building", ROOT / "frontend"]
    building, tested = (json.loads((lock / "package-lock.json").read_text()) for lock in locks)
    for name, package in building["packages"].items():
        if name:
            assert package["version"] == tested["packages"][name]["version"], name
