"""The component inside another application, as docs/mounting.md shows it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.tuspy import uploader_of
from tests.docs.blocks import blocks
from tests.support.application import Application
from tests.support.requirements import refuse
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


@pytest.fixture
def typed(tmp_path: Path) -> list[Path]:
    """The examples of README and page with what type checkers have to know."""
    found: list[Path] = []
    for number, page in enumerate(("README.md", "docs/mounting.md")):
        found.append(tmp_path / f"example{number}.py")
        found[-1].write_text(f"from pathlib import Path\n{example(page)}{_TYPED}")
    return found


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


def test_mypy_knows_settings_without_a_plugin(typed: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text(_MYPY)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", "cache", *typed],
        cwd=tmp_path,
        env=environment({"MYPYPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_pyright_knows_settings(typed: list[Path], tmp_path: Path) -> None:
    """README's example alone, as pyright reads all of FastAPI and pydantic."""
    node, pyright = shutil.which("node"), ROOT / "tests/clients/node/node_modules/pyright/index.js"
    if node is None or not pyright.exists():
        refuse("pyright is not installed; make test installs it where there are Node and npm")
    configuration = {
        "include": [typed[0].name],
        "typeCheckingMode": "strict",
        # Or what mypy is told to ignore would be ignored whether it is wrong or not.
        "reportUnnecessaryTypeIgnoreComment": "error",
        # What a test of types is made of.
        "reportUnusedExpression": "none",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(configuration))
    done = subprocess.run(
        [str(node), str(pyright), "--pythonpath", sys.executable],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.filterwarnings("ignore:Using `httpx`")
def test_the_other_code_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be loaded, and its test passes."""
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    for code in blocks("docs/mounting.md", "python")[1:]:
        if "@asynccontextmanager" not in code:
            exec(compile(code, "mounting.md", "exec"), found)
    test = found["test_upload"]
    assert callable(test)
    test(tmp_path / "uploads")
