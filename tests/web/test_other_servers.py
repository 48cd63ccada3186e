"""The component under another ASGI server: uploads come as plain streams."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.tuspy import uploader_of
from tests.support.server import environment

# tuspy leaves the file it reads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

APPLICATION = """
from starlette.applications import Starlette
from starlette.routing import Mount
from tusd_py import Settings, TusApp

uploads = TusApp(Settings(upload_dir="uploads", base_path="/"))
app = Starlette(routes=[Mount("/files", app=uploads)], lifespan=uploads.lifespan)
"""


def test_uploads_under_hypercorn(tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 10_000)
    (tmp_path / "example.py").write_text(APPLICATION)
    process = subprocess.Popen(
        [sys.executable, "-m", "hypercorn", "--bind", "127.0.0.1:0", "example:app"],
        cwd=tmp_path,
        env=environment({"PYTHONPATH": str(tmp_path)}),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        url = next(
            found[1]
            for line in process.stderr
            if (found := re.search(r"Running on (http://\S+)", line))
        )
        uploader = uploader_of(f"{url}/files/", source, chunk_size=1_000_000)
        uploader.upload()
        assert uploader.url.startswith(f"{url}/files/")
    finally:
        process.terminate()
        process.communicate(timeout=30)
    upload_id = uploader.url.rpartition("/")[2]
    assert (tmp_path / "uploads" / upload_id).read_bytes() == source.read_bytes()
