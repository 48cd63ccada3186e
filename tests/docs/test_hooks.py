"""The example of docs/hooks.md, on a real server."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

from tests.conftest import MakeServer
from tests.docs.blocks import blocks
from tests.support.tus import Tus


def test_the_example_refuses_and_announces(make_server: MakeServer, tmp_path: Path) -> None:
    (code,) = (block for block in blocks("docs/hooks.md", "python") if "pre_create" in block)
    hooks = tmp_path / "hooks.py"
    hooks.write_text(code)
    server = make_server("--hook", str(hooks))
    tus = Tus(server)
    png = "filetype " + b64encode(b"image/png").decode()
    refused = tus.create(5, headers={"Upload-Metadata": png})
    assert refused.status == 415
    assert b"only DICOM" in refused.body
    assert list(server.upload_dir.glob("*.info")) == []

    dicom = "filetype " + b64encode(b"application/dicom").decode()
    path = tus.finished(b"study", {"Upload-Metadata": dicom})
    server.terminate()
    assert server.output == [f"finished {path.rpartition('/')[2]} 5"]
