"""The commands for Resumable Uploads for HTTP in docs/protocol.md do what the page says."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
from pathlib import Path

from tests.docs.blocks import blocks
from tests.support.server import ServerProcess

COLLECTION = "http://127.0.0.1:8080/files/"
STUDY = bytes(range(256)) * 10_000


def run(script: str, server: ServerProcess, directory: Path) -> str:
    """What a shell prints that runs `script` in a directory with a study."""
    (directory / "study.zip").write_bytes(STUDY)
    done = subprocess.run(
        ["sh", "-eu", "-c", script.replace(COLLECTION, server.url)],
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def field(name: str, shown: str) -> list[str]:
    return re.findall(rf"(?im)^{name}: (\S+)", shown)


def test_a_file_sent_as_it_is(server: ServerProcess, tmp_path: Path) -> None:
    (whole,) = (each for each in blocks("docs/protocol.md", "sh") if each.rstrip().endswith("?1'"))
    shown = run(whole, server, tmp_path)
    assert " 201 Created" in shown
    assert field("upload-complete", shown) == ["?1"]
    (location,) = field("location", shown)
    upload_id = location.rpartition("/")[2]
    assert server.data_file(upload_id).read_bytes() == STUDY
    assert '"filename":"study.zip"' in server.info_file(upload_id).read_text()


def test_a_file_in_pieces(server: ServerProcess, tmp_path: Path) -> None:
    scripts = blocks("docs/protocol.md", "sh")
    (first,) = (each for each in scripts if "hello.txt" in each)
    (rest,) = (each for each in scripts if "printf ' world'" in each)
    (location,) = field("location", run(first, server, tmp_path))
    documented = re.search(rf"{re.escape(COLLECTION)}[0-9a-f]{{32}}", rest)
    assert documented is not None
    shown = run(rest.replace(documented[0], location), server, tmp_path)
    assert field("upload-offset", shown) == ["5", "11"]
    assert field("upload-complete", shown) == ["?0", "?1"]
    assert shown.endswith("hello world")


def test_a_file_with_its_digest(server: ServerProcess, tmp_path: Path) -> None:
    (script,) = (each for each in blocks("docs/protocol.md", "sh") if "Want-Repr-Digest" in each)
    shown = run(script, server, tmp_path)
    made = base64.b64encode(hashlib.sha256(STUDY).digest()).decode()
    assert field("repr-digest", shown) == [f"sha-256=:{made}:"]


def test_interim_responses_do_not_disturb_curl(server: ServerProcess, tmp_path: Path) -> None:
    (whole,) = (each for each in blocks("docs/protocol.md", "sh") if each.rstrip().endswith("?1'"))
    shown = run(f"{whole.rstrip()} -H 'Upload-Draft-Interop-Version: 9'", server, tmp_path)
    assert shown.count(" 104 ") == 1
    assert " 201 Created" in shown
