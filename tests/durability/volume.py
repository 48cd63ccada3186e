"""A file system for one test, whose disk can be inspected as after a power failure.

The disk is a file under a loop device: what the kernel has not written to it is not in the file, however long it is in memory.
A copy of that file is the disk of a machine that lost its power at that moment.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.requirements import refuse, require_program
from tests.support.waiting import wait_until

_SIZE = 512 * 1024 * 1024
_FAILING_SIZE = 100 * 1024 * 1024


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
        run_tool("mkfs.ext4", "-q", "-F", str(self._disk))
        with _mounted(self._disk, self.root, "loop,commit=600"):
            yield

    @contextmanager
    def after_power_loss(self, place: Path) -> Iterator[Path]:
        """Mount a copy of the disk as it is now below `place`."""
        place.mkdir(parents=True)
        copy = place / "disk"
        run_tool("cp", "--sparse=always", str(self._disk), str(copy))
        with _mounted(copy, place / "mounted", "loop"):
            yield place / "mounted"
        copy.unlink()


class FailingVolume:
    """A file system on a disk that can be made to lose writes to its free blocks, like a full thin pool.

    The disk is a file in a tmpfs: its free blocks are punched out of it, and the tmpfs is filled up, so that they cannot be
    written. No journal: all that a test writes must have its metadata on the disk before.
    """

    def __init__(self, directory: Path) -> None:
        self.root = directory / "mounted"
        self._back = directory / "back"
        self._loop = ""

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Made and mounted."""
        for place in (self._back, self.root):
            place.mkdir(parents=True)
        run_tool("mount", "-t", "tmpfs", "-o", "size=130m", "tmpfs", str(self._back))
        try:
            with (self._back / "disk").open("wb") as disk:
                disk.write(bytes(_FAILING_SIZE))
            self._loop = run_tool("losetup", "-f", "--show", str(self._back / "disk")).strip()
            try:
                options = "lazy_itable_init=0,nodiscard"
                features = "^has_journal,^uninit_bg,^flex_bg"
                run_tool("mkfs.ext4", "-qF", "-b4096", "-O", features, "-E", options, self._loop)
                run_tool("mount", "-o", "errors=continue,nodiscard", self._loop, str(self.root))
                try:
                    yield
                finally:
                    unmount(self.root)
            finally:
                run_tool("losetup", "-d", self._loop)
        finally:
            unmount(self._back)

    @contextmanager
    def losing(self) -> Iterator[None]:
        """Lose what is written to free space inside the `with` block, once it is written back, at the end at the latest."""
        self._write_back()
        for first, last in self._free_blocks():
            where = ["-o", str(first * 4096), "-l", str((last - first + 1) * 4096)]
            run_tool("fallocate", "-p", *where, str(self._back / "disk"))
        filler = self._back / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(65536)):
                pass
        yield
        self._write_back()
        filler.unlink()

    def _write_back(self) -> None:
        """Write everything to the disk. syncfs(2) would take the error, and sync(2) write other tests' disks, too."""
        run_tool("mount", "-o", "remount", str(self.root))

    def _free_blocks(self) -> Iterator[tuple[int, int]]:
        """Large runs of them, so that small files still find room."""
        for line in run_tool("dumpe2fs", self._loop).splitlines():
            name, _, runs = line.strip().partition(": ")
            if name == "Free blocks" and runs:
                for run in runs.split(", "):
                    first, _, last = run.partition("-")
                    if int(last or first) - int(first) > 512:
                        yield int(first), int(last)

    def on_disk(self, file: Path) -> bytes:
        """Return a file's content on the disk, regardless of the page cache."""
        return subprocess.run(
            ["dd", f"if={file}", "iflag=direct", "bs=1M", "status=none"],
            check=True,
            capture_output=True,
        ).stdout


@contextmanager
def _mounted(disk: Path, root: Path, options: str) -> Iterator[None]:
    root.mkdir(parents=True)
    run_tool("mount", "-o", options, str(disk), str(root))
    try:
        yield
    finally:
        unmount(root)


def unmount(root: Path) -> None:
    """Unmount, once no process that is just starting in a mount namespace of its own has a copy of what is mounted here."""

    def is_unmounted() -> bool:
        return (
            subprocess.run(["umount", str(root)], capture_output=True, check=False).returncode == 0
        )

    wait_until(is_unmounted, f"{root} to be unmounted")


def run_tool(*command: str) -> str:
    return subprocess.run(
        [require_program(command[0]), *command[1:]], check=True, capture_output=True, text=True
    ).stdout


def require_mounts(directory: Path) -> None:
    """Skips the test without the right to mount, as in most containers; fails it in CI."""
    if os.geteuid() != 0:
        refuse("only root can mount a file system")
    for name, package in (("mount", ""), ("umount", "mount"), ("mkfs.ext4", "e2fsprogs")):
        require_program(name, package)
    probe = Volume(directory / "probe")
    probe.root.parent.mkdir()
    try:
        with probe.mounted():
            pass
    except subprocess.CalledProcessError as refused:
        refuse(f"no file system can be mounted here: {refused.stderr.decode().strip()}")
