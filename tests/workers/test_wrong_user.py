"""Commands of an operator who may not: a line that says so, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.privileges import OBEYING_PERMISSIONS
from tests.support.server import environment
from tests.support.tus import Tus

DIRECTORIES = (
    ("uploads", "list"),
    ("uploads", "rm", "x"),
    ("events", "failed"),
    ("token", "revoke", "--owner", "x"),
    ("worker",),
)
REDIS = (("status",), ("duplicates", "list"))


@pytest.fixture
def forbidden(make_server: MakeServer) -> Iterator[Path]:
    """The upload directory of a stopped server, whose state directory may not be entered."""
    server = make_server()
    Tus(server).new(10)
    server.terminate()
    state = server.upload_dir / ".tusd-py"
    mode = state.stat().st_mode
    state.chmod(0)
    yield server.upload_dir
    state.chmod(mode)


def told(words: tuple[str, ...], *flags: str, code: int = 2) -> str:
    """The one line of output of a failing command."""
    done = subprocess.run(
        [*OBEYING_PERMISSIONS, sys.executable, "-m", "tusd_py", *words, *flags],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment({}),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert done.stderr.startswith(f"tusd-py {words[0]}: ")
    return done.stderr


def test_directories_that_may_not_be_entered(forbidden: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        lines = threads.map(lambda words: told(words, "--upload-dir", str(forbidden)), DIRECTORIES)
        for line in lines:
            assert f"{forbidden}/.tusd-py" in line
            assert "Permission denied" in line
            assert "run it as the user of the server" in line


def test_a_redis_that_refuses(tmp_path: Path) -> None:
    flags = ("--upload-dir", str(tmp_path), "--redis-url", "redis://:word@127.0.0.1:1")
    with ThreadPoolExecutor(2) as threads:
        for line in threads.map(lambda words: told(words, *flags, code=1), REDIS):
            assert "Redis" in line
            assert "127.0.0.1:1" in line
            assert "word" not in line
