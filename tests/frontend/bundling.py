"""Bundles modules for pages as applications do, with esbuild and the packages of `frontend/`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.frontend.building import DIST, FRONTEND


def bundle(entry: Path, outfile: Path) -> None:
    """Writes what `entry` and everything that it imports amount to, in one file."""
    done = subprocess.run(
        [
            str(FRONTEND / "node_modules" / ".bin" / "esbuild"),
            str(entry),
            "--bundle",
            "--format=esm",
            "--log-level=warning",
            f"--alias:@tusd-py/upload-manager={DIST}",
            f"--outfile={outfile}",
        ],
        env={"NODE_PATH": str(FRONTEND / "node_modules"), "PATH": "/usr/bin:/bin:/usr/local/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
