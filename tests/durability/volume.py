"""A file system of a test's own, whose disk can be looked at as it would be found after a loss of power.

The disk is a file under a loop device: what the kernel has not written to it is not in the file, however long it is in memory.
A copy of that file is the disk of a machine that lost its power at that moment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SIZE = 512 * 1024 * 1024


class Volume:
    """See the module. root: where it is mounted."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "mounted"
        self._disk = directory / "disk"

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Made and mounted. Its own commits, every five seconds as a rule, do not come between a test and its disk."""
        with self._disk.open("wb") as disk:
            disk.truncate(_SIZE)
        _run("mkfs.ext4", "-q", "-F", str(self._disk))
        with _mounted(self._disk, self.root, "loop,commit=600"):
            yield

    @contextmanager
    def after_power_loss(self, place: Path) -> Iterator[Path]:
        """What the disk holds now, mounted below `place`."""
        place.mkdir(parents=True)
        copy = place / "disk"
        _run("cp", "--sparse=always", str(self._disk), str(copy))
        with _mounted(copy, place / "mounted", "loop"):
            yield place / "mounted"
        copy.unlink()


@contextmanager
def _mounted(disk: Path, root: Path, options: str) -> Iterator[None]:
    root.mkdir(parents=True)
    _run("mount", "-o", options, str(disk), str(root))
    try:
        yield
    finally:
        _run("umount", str(root))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def require_mounts(directory: Path) -> None:
    """Skips where this process may not mount anything, as in most containers."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("mount", "umount", "mkfs.ext4"))):
        pytest.skip("only root can mount a file system")
    probe = Volume(directory / "probe")
    probe.root.parent.mkdir()
    try:
        with probe.mounted():
            pass
    except subprocess.CalledProcessError as refused:
        pytest.skip(f"no file system can be mounted here: {refused.stderr.decode().strip()}")
