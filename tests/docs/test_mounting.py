"""The component inside another application, as docs/mounting.md shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.tuspy import uploader_of
from tests.docs.blocks import blocks
from tests.support.application import Application
from tests.support.server import ROOT, environment

# tuspy leaves the file it reads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

_TYPED = """
size: int = uploads.settings.max_size
directory: Path = uploads.settings.upload_dir
Settings(max_size=10**9, upload_dir=Path("x"), expire_after="14d", hooks=["a:b"], jwt_secret="x" * 32)
Settings(max_size=1.5)  # type: ignore[arg-type]
Settings(max_sise="10GB")  # type: ignore[call-arg]
Settings(durability="always")  # type: ignore[arg-type]
uploads.settings.port = 1  # type: ignore[misc]
"""
"""What type checkers have to know of settings; a mistake that is not found makes its comment an error."""

_MYPY = """
[mypy]
strict = true
enable_error_code = ignore-without-code
# Only what the types of settings depend on, as the rest takes long.
follow_imports = skip
disallow_subclassing_any = false
disallow_untyped_decorators = false
[mypy-tusd_py,tusd_py.settings.*,tusd_py.web.app,pydantic.*,pydantic_core.*,annotated_types.*]
follow_imports = silent
"""


def example(page: str) -> str:
    """The first application on a page."""
    return next(block for block in blocks(page, "python") if "app.mount" in block)


@pytest.mark.parametrize("page", ["README.md", "docs/mounting.md"])
@pytest.mark.parametrize("flags", [(), ("--http", "tusd_py:UploadProtocol")])
def test_uploads_in_a_fastapi_application(
    tmp_path: Path, page: str, flags: tuple[str, ...]
) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 10_000)
    with Application(tmp_path, example(page), *flags) as server:
        uploader = uploader_of(server.url, source, chunk_size=1_000_000)
        uploader.upload()
        assert uploader.url.startswith(server.url)
        assert uploader.get_offset() == source.stat().st_size
    upload_id = uploader.url.rpartition("/")[2]
    assert (tmp_path / "uploads" / upload_id).read_bytes() == source.read_bytes()


def test_type_checkers_know_settings_without_a_plugin(tmp_path: Path) -> None:
    examples: list[str] = []
    for page in ("README.md", "docs/mounting.md"):
        examples.append(f"example{len(examples)}.py")
        (tmp_path / examples[-1]).write_text(f"from pathlib import Path\n{example(page)}{_TYPED}")
    (tmp_path / "mypy.ini").write_text(_MYPY)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", "cache", *examples],
        cwd=tmp_path,
        env=environment({"MYPYPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
