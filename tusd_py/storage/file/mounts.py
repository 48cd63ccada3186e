"""What kind of file system a directory lies on: what is true of this machine's disks is not always true of a network's."""

from __future__ import annotations

import os
from pathlib import Path

_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs"}
"""Of these it is known: nobody else writes to them; `syncfs` syncs no more than them, and reports what it could not write."""


_KEEPS_ORDER = {"ext3", "ext4", "xfs", "btrfs", "f2fs", "overlay", "tmpfs"}
"""Of these it is known: of changes to names and sizes, none is on the disk before an earlier one."""


def keeps_order(path: str) -> bool:
    """Whether it is certain that names and sizes reach the disk in the order of their changes. Raises OSError."""
    return _kind(path) in _KEEPS_ORDER


def is_local(path: str) -> bool:
    """Whether it is certain that a path lies on a disk of this machine. Raises OSError."""
    return _kind(path) in _LOCAL


def mount_of(path: str) -> str:
    """Which mount of which device a path lies on, as this machine counts them since it was started. Raises OSError."""
    device = os.stat(path).st_dev
    return f"{device} {' '.join(_fields_of(path)[:1])}"


def _kind(path: str) -> str:
    """The kind of the file system that a path lies on; empty where that cannot be told."""
    fields = _fields_of(path)
    return fields[fields.index("-") + 1] if fields else ""


def _fields_of(path: str) -> list[str]:
    """What mountinfo says of the file system that a path lies on; nothing where that cannot be told."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    # btrfs gives each of its parts a device number that no mount has.
    for line in reversed(mounts):
        if (fields := line.split())[2] == wanted:
            return fields
    return []
