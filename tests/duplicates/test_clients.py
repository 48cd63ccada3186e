"""tus-js-client and tuspy with the code of docs/duplicates.md: they read the offer, resume, or force."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.content import MIB, SourceFile, write_source
from tests.clients.tus_js import NODE_DIR, require_tus_js
from tests.clients.tuspy import uploader_of
from tests.conftest import MakeServer
from tests.docs.blocks import blocks
from tests.support.redis import RedisServer
from tests.support.tus import Tus, id_of, metadata, path_of

HERE = Path(__file__).parent
PAGE = "docs/duplicates.md"
STUDY = {"Upload-Metadata": metadata(study="17")}


@pytest.fixture
def tus(make_server: MakeServer) -> Tus:
    """A client of a server without authentication."""
    return Tus(make_server())


@pytest.fixture
def owned(make_server: MakeServer, tmp_path: Path) -> Iterator[Tus]:
    """A client of a server on which every upload belongs to the same user."""
    with RedisServer(tmp_path / "redis") as redis:
        # Off is the hook that comes with the server.
        env = {"TUSD_REDIS_URL": redis.url, "TUSD_DUPLICATES": "off"}
        hook = f"{HERE / 'owned.py'}:Owned"
        yield Tus(make_server("--hook", hook, env=env))


@pytest.fixture
def source(tmp_path: Path) -> SourceFile:
    return write_source(tmp_path / "study.dcm", MIB)


def begun(tus: Tus, source: SourceFile) -> str:
    """The path of an upload of the source that has a part of its bytes."""
    path = tus.new(source.size, headers=STUDY)
    assert tus.patch(path, 0, source.path.read_bytes()[:1000]).status == 204
    return path


# tus-js-client


@pytest.fixture
def page(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """The program that runs the documented lines."""
    require_tus_js(tmp_path_factory)
    directory = tmp_path / "page"
    directory.mkdir()
    [code] = [block for block in blocks(PAGE, "js") if "uploadAsking" in block]
    (directory / "documented.mjs").write_text(code)
    shutil.copy(HERE / "page.mjs", directory)
    (directory / "node_modules").symlink_to(NODE_DIR / "node_modules")
    return directory / "page.mjs"


def upload_by_page(
    page: Path, tus: Tus, source: SourceFile, answer: str
) -> list[dict[str, object]]:
    options = {
        "endpoint": tus.server.url,
        "metadata": {"study": "17"},
        "retryDelays": [0, 0, 0],
    }
    done = subprocess.run(
        ["node", str(page), str(source.path), json.dumps(options), answer],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def asked(events: list[dict[str, object]]) -> dict[str, object]:
    """The duplicate that the user was asked about, once, at the first refusal."""
    assert events[:2] == [{"event": "response", "method": "POST", "status": 409}, events[1]]
    [duplicate] = [event["duplicate"] for event in events if event["event"] == "asked"]
    assert isinstance(duplicate, dict)
    return duplicate


def statuses(events: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(event["method"], event["status"]) for event in events if event["event"] == "response"]


def test_tus_js_client_without_a_duplicate(page: Path, tus: Tus, source: SourceFile) -> None:
    events = upload_by_page(page, tus, source, "force")
    assert statuses(events) == [("POST", 201), ("PATCH", 204)]


def test_tus_js_client_resumes(page: Path, owned: Tus, source: SourceFile) -> None:
    path = begun(owned, source)
    events = upload_by_page(page, owned, source, "resume")
    duplicate = asked(events)
    assert duplicate["state"] == "pending"
    assert path_of(str(duplicate["location"])) == path
    assert duplicate["offset"] == 1000
    assert statuses(events) == [("POST", 409), ("HEAD", 200), ("PATCH", 204)]
    assert owned.stored(path) == source.path.read_bytes()
    assert owned.data_files() == [id_of(path)]


def test_tus_js_client_forces(page: Path, tus: Tus, source: SourceFile) -> None:
    path = begun(tus, source)
    events = upload_by_page(page, tus, source, "force")
    assert "location" not in asked(events)
    assert statuses(events) == [("POST", 409), ("POST", 201), ("PATCH", 204)]
    new = path_of(str(events[-1]["url"]))
    assert new != path
    assert tus.stored(new) == source.path.read_bytes()
    assert tus.offset(path) == 1000


def test_tus_js_client_leaves_it(page: Path, tus: Tus, source: SourceFile) -> None:
    path = tus.finished(source.path.read_bytes(), headers=STUDY)
    events = upload_by_page(page, tus, source, "leave")
    assert asked(events)["state"] == "complete"
    assert statuses(events) == [("POST", 409)]
    assert events[-1]["event"] == "error"
    assert tus.data_files() == [id_of(path)]


# tuspy


def upload_by_tuspy(tus: Tus, source: SourceFile) -> None:
    """The documented lines, for this server and this file."""
    [code] = blocks(PAGE, "python")
    code = code.replace("https://uploads.example/files/", tus.server.url)
    exec(code.replace('"study.dcm"', repr(str(source.path))), {})


def test_tuspy_resumes(owned: Tus, source: SourceFile) -> None:
    path = begun(owned, source)
    upload_by_tuspy(owned, source)
    assert owned.stored(path) == source.path.read_bytes()
    assert owned.data_files() == [id_of(path)]


def test_tuspy_with_retries_resumes_by_itself(owned: Tus, source: SourceFile) -> None:
    path = begun(owned, source)
    with source.path.open("rb") as file:
        uploader = uploader_of(
            owned.server.url, file, metadata={"study": "17"}, retries=1, retry_delay=0
        )
        uploader.upload()
    assert owned.stored(path) == source.path.read_bytes()


def test_tuspy_forces(tus: Tus, source: SourceFile) -> None:
    path = begun(tus, source)
    upload_by_tuspy(tus, source)
    [new] = [name for name in tus.data_files() if name != id_of(path)]
    assert tus.server.data_file(new).read_bytes() == source.path.read_bytes()
