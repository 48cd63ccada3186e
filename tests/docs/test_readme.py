"""The README's examples work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.stalls import stalled_links
from tests.clients.tus_js import require_tus_js
from tests.conftest import MakeServer
from tests.docs.blocks import blocks
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.server import ROOT, ServerProcess, environment

DOCUMENTED = "http://127.0.0.1:8080/files/"


def run(script: str, directory: Path) -> str:
    """The output of a shell that runs `script`."""
    done = subprocess.run(
        ["sh", "-eu", "-c", script], cwd=directory, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_first_upload_in_a_minute(server: ServerProcess, tmp_path: Path) -> None:
    assert shutil.which("curl"), "the README's examples need curl"
    create, upload = (block for block in blocks("README.md", "sh") if "curl" in block)

    created = run(create.replace(DOCUMENTED, server.url), tmp_path)
    assert " 201 Created" in created
    location = re.search(r"(?im)^location: (\S+)", created)
    assert location is not None

    documented = re.search(rf"{re.escape(DOCUMENTED)}[0-9a-f]{{32}}", upload)
    assert documented is not None
    shown = run(upload.replace(documented[0], location[1]), tmp_path)
    assert [int(value) for value in re.findall(r"(?im)^upload-offset: (\d+)", shown)] == [5, 5, 11]
    assert shown.endswith("hello world")


def test_the_example_for_python(server: ServerProcess, tmp_path: Path) -> None:
    source = tmp_path / "study.zip"
    source.write_bytes(bytes(range(256)) * 100_000)
    (code,) = (block for block in blocks("README.md", "python") if "tusclient" in block)
    done = subprocess.run(
        [sys.executable, "-c", code.replace(DOCUMENTED, server.url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    upload_id = done.stdout.strip().rpartition("/")[2]
    assert (server.upload_dir / upload_id).read_bytes() == source.read_bytes()


def test_the_example_for_python_continues_when_it_is_run_again(
    make_server: MakeServer, tmp_path: Path
) -> None:
    """The server and the client are killed in the middle, twice."""
    server = make_server()
    source = tmp_path / "study.zip"
    source.write_bytes(os.urandom(1 << 20) * 200)
    (code,) = (block for block in blocks("README.md", "python") if "tusclient" in block)

    def size() -> int:
        return sum(path.stat().st_size for path in server.upload_dir.glob("*") if path.is_file())

    sizes = [0]
    with FaultProxy(server.address) as proxy:
        command = [sys.executable, "-c", code.replace(DOCUMENTED, proxy.url())]
        for kills in (1, 2):
            # It makes a connection for each request, of 8 MiB; that of the last one stands still.
            proxy.plan(*[Plan()] * 4, Plan(up=Way(stall_after=1 << 20)))
            with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as client:
                stalled_links(proxy, kills)
                server.kill9()
                client.kill()
            proxy.drop_plans()
            sizes.append(size())
            assert sizes[-2] + (20 << 20) < sizes[-1] < 200 << 20
            server.restart()
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    upload_id = done.stdout.strip().rpartition("/")[2]
    assert (server.upload_dir / upload_id).read_bytes() == source.read_bytes()
    assert len(list(server.upload_dir.glob("*.info"))) == 1


def test_the_example_for_javascript_is_one_for_tus_js_client(
    server: ServerProcess, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Run as it stands, with what a page has around it."""
    require_tus_js(tmp_path_factory)
    (code,) = blocks("README.md", "js")
    script = tmp_path / "page.mjs"
    client = ROOT / "tests/clients/node/node_modules/tus-js-client/lib.esm/node/index.js"
    script.write_text(
        f"import * as tus from {json.dumps(str(client))};\n"
        "const file = Object.assign(Buffer.from('hello world'), {name: 'a.txt', type: 'text/plain'});\n"
        + code.replace(DOCUMENTED, server.url)
    )
    before = set(server.upload_dir.glob("*.info"))
    subprocess.run(["node", str(script)], cwd=tmp_path, check=True, capture_output=True)
    (info,) = set(server.upload_dir.glob("*.info")) - before
    assert info.with_suffix("").read_bytes() == b"hello world"
    assert json.loads(info.read_bytes())["MetaData"] == {
        "filename": "a.txt",
        "filetype": "text/plain",
    }


@pytest.mark.parametrize("page", ["docs/operating.md", "docs/from-tusd.md", "docs/hooks.md"])
def test_commands_of_the_pages_are_accepted(page: str, tmp_path: Path) -> None:
    """Settings are read and judged by `config` as by `serve`, without a server starting."""
    commands = [
        line.removeprefix("tusd-py ").split()
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("tusd-py ")
    ]
    assert commands
    for command, *flags in commands:
        if command == "adopt":
            continue  # tests/compat/test_pages.py
        assert command in ("serve", "config")
        done = subprocess.run(
            [sys.executable, "-m", "tusd_py", "config", *flags],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
