"""A small file system for one test that can be filled, emptied, and made read-only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.durability.volume import run_tool


class SmallDisk:
    """root: where it is mounted. kind: tmpfs, or ext4 on a loop device."""

    def __init__(self, directory: Path, kind: str, mebibytes: int = 0) -> None:
        """mebibytes: 24 or 40 by default, by kind."""
        self.root = directory / "small"
        self._image = directory / "image"
        self._kind = kind
        self._size = mebibytes or (24 if kind == "tmpfs" else 40)

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Create and mount it; skips the test without the right to do so."""
        self.root.mkdir()
        if self._kind == "tmpfs":
            run_tool("mount", "-t", "tmpfs", "-o", f"size={self._size}m", "tmpfs", str(self.root))
        else:
            with self._image.open("wb") as image:
                image.truncate(self._size << 20)
            run_tool("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
            run_tool("mount", "-o", "loop", str(self._image), str(self.root))
        try:
            yield
        finally:
            run_tool("umount", "-l", str(self.root))

    def fill(self) -> None:
        """Use up all space, to the last block and the last inode's directory entry."""
        # Most of it at once, without a byte being written.
        with suppress(OSError), (self.root / "filler-0").open("ab") as filler:
            free = os.fstatvfs(filler.fileno())
            os.posix_fallocate(filler.fileno(), 0, max(1, (free.f_bavail - 256) * free.f_frsize))
        while self._append_to_fillers():
            # The blocks of files that were removed before are free once their removal is committed.
            run_tool("sync", "-f", str(self.root))

    def _append_to_fillers(self) -> int:
        """Write until nothing can be written; return the number of bytes."""
        written = 0
        for size in (1 << 20, 4096, 1):
            with (
                suppress(OSError),
                (self.root / f"filler-{size}").open("ab", buffering=0) as filler,
            ):
                while count := os.write(filler.fileno(), b"x" * size):
                    written += count
        return written

    def empty(self) -> None:
        """Free that space."""
        for filler in self.root.glob("filler-*"):
            filler.unlink()

    def make_read_only(self) -> None:
        """Remount read-only, as after a disk error."""
        run_tool("mount", "-o", "remount,ro", str(self.root))
