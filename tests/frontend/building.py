"""The built package of `frontend/`, and the programs that its tests need, which are required if CI is set."""

from __future__ import annotations

import fcntl
import subprocess
import sys

import pytest

from tests.support.requirements import require_program
from tests.support.server import ROOT

FRONTEND = ROOT / "frontend"
DIST = FRONTEND / "dist"
CHROMIUM = "/usr/bin/chromium"
_BUILT_FROM = ("src/*.ts", "package-lock.json", "package.json", "tsconfig.json")


def build(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sees to it that `frontend/dist` is what its sources say."""
    require_program("node", "nodejs")
    require_program("npm")
    # Several workers come here at the same time; the base's parent is what they have in common.
    with (tmp_path_factory.getbasetemp().parent / "frontend.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install()
        if not _is_fresh():
            _npm("run", "build")


def build_pages() -> None:
    """Sees to it that the server has the pages that `frontend/pages` says, and tests what they look at them with."""
    require_program("node", "nodejs")
    require_program("npm")
    with (FRONTEND / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install()
    done = subprocess.run(
        [sys.executable, str(FRONTEND / "build.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _install() -> None:
    if not all((FRONTEND / "node_modules" / name).is_dir() for name in ("axe-core", "@uppy/core")):
        _npm("ci", "--ignore-scripts")


def _is_fresh() -> bool:
    """True if the build is newer than all of its sources."""
    last = DIST / "upload-manager.js"
    sources = [file for pattern in _BUILT_FROM for file in FRONTEND.glob(pattern)]
    assert sources, "frontend/ has no sources"
    return last.exists() and last.stat().st_mtime > max(file.stat().st_mtime for file in sources)


def _npm(*arguments: str) -> None:
    done = subprocess.run(
        ["npm", *arguments], cwd=FRONTEND, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"npm {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
