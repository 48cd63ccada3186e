"""The commands and examples of docs/from-tuspyserver.md and docs/from-tusd.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import MakeSource
from tests.clients.content import sha256_of_file
from tests.clients.tuspy import uploader_of
from tests.compat import http
from tests.compat.apps import AppProcess, path_in
from tests.compat.directories import write_as_tuspyserver
from tests.compat.test_parts import SECRET, token
from tests.docs.blocks import blocks
from tests.storage.test_file_store import write_as_tusd
from tests.support.server import ROOT, environment

THEIRS, TUSD = "docs/from-tuspyserver.md", "docs/from-tusd.md"
UPLOAD = "a" * 32


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_the_example_with_one_import_changed(tmp_path: Path, make_source: MakeSource) -> None:
    source = make_source(1_000_000)
    (code,) = (block for block in blocks(THEIRS, "python") if "tusd_py.compat" in block)
    with AppProcess(tmp_path / "app", code) as app:
        collection = f"{app.url}/files/"
        assert http.create(collection, 5, {"name": "x"}).json() == {
            "detail": "a file name is needed"
        }
        uploader = uploader_of(
            collection, source.path, chunk_size=300_000, metadata={"filename": "x"}
        )
        uploader.upload()
        app.wait_for("^complete: ")
    assert sha256_of_file(path_in(tmp_path / "app" / "uploads", uploader.url)) == source.sha256


def test_the_example_with_our_parts(tmp_path: Path) -> None:
    (code,) = (block for block in blocks(THEIRS, "python") if "DuplicateCheck(" in block)
    env = {"JWT_SECRET": SECRET, "TUSD_DUPLICATES": ""}
    with AppProcess(tmp_path / "app", code, "theirs", env=env) as app:
        collection = f"{app.url}/files/"
        ann = token(scope="uploads:create")
        assert http.create(collection, 5, {"filename": "x"}).status_code == 401
        created = http.create(collection, 5, {"filename": "x"}, ann)
        assert created.status_code == 201
        again = http.create(collection, 5, {"filename": "x"}, ann)
        assert again.headers["content-type"] == "application/problem+json"
        assert (again.status_code, again.headers["location"]) == (409, created.headers["location"])
        assert http.patch(created.headers["location"], 0, b"hello", ann).status_code == 204
        app.wait_for("^complete: ")


@pytest.mark.parametrize("page", [THEIRS, TUSD])
def test_the_commands_that_take_over(page: str, tmp_path: Path) -> None:
    write_as_tuspyserver(tmp_path / "uploads", UPLOAD, b"hello", size=11)
    write_as_tusd(tmp_path / "data", UPLOAD, b"hello", Size=11)
    commands = [
        line.split()
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("tusd-py adopt")
    ]
    verbs = ["would be taken over", "taken over", *(["given back"] if page == THEIRS else [])]
    for verb, command in zip(verbs, commands, strict=True):
        done = subprocess.run(
            [sys.executable, "-m", "tusd_py", *command[1:]],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"1 {verb}, 0 of them finished and 1 unfinished" in done.stdout


@pytest.mark.parametrize("page", [THEIRS, TUSD])
def test_the_servers_that_are_shown_could_start(page: str, tmp_path: Path) -> None:
    commands = [
        line.split()
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("tusd-py serve")
    ]
    assert commands
    for command in commands:
        subprocess.run(
            [sys.executable, "-m", "tusd_py", "config", *command[2:]],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            check=True,
        )


def test_every_flag_that_is_said_to_be_the_same_is_one(tmp_path: Path) -> None:
    text = (ROOT / TUSD).read_text(encoding="utf-8")
    start = text.index("These mean the same")
    paragraph = text[start : text.index("\n\n", start)]
    flags = re.findall(r"`--([a-z-]+)`", paragraph)
    assert len(flags) > 30
    done = subprocess.run(
        [sys.executable, "-m", "tusd_py", "config", "--json"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    known = json.dumps(json.loads(done.stdout))
    assert not [flag for flag in flags if f'"{flag.replace("-", "_")}"' not in known]


def test_the_extras_that_are_named_exist() -> None:
    text = (ROOT / THEIRS).read_text(encoding="utf-8")
    named = set(re.findall(r"pip install '\.\[(\w+)\]'", text))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert named == {"fastapi", "tuspyserver"}
    assert all(f"\n{name} = [" in project for name in named)
