"""Properties of the file system that a path lies on, from its type."""

from __future__ import annotations

import os
from pathlib import Path

_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs"}
"""Types that only this machine writes to, and whose `syncfs` syncs no other file system and reports its errors."""

_KEEPS_ORDER = {"ext3", "ext4", "xfs", "btrfs", "f2fs", "overlay", "tmpfs"}
"""Types that write changes of names and sizes to the disk in order."""


def keeps_order(path: str) -> bool:
    """Return whether names and sizes are certain to reach the disk in the order of their changes. Raises OSError."""
    return _kind(path) in _KEEPS_ORDER


def is_local(path: str) -> bool:
    """Return whether a path is certain to lie on a disk of this machine. Raises OSError."""
    return _kind(path) in _LOCAL


def mount_of(path: str) -> str:
    """Return an id of the device and the mount that a path lies on, unique since boot. Raises OSError."""
    device = os.stat(path).st_dev
    return f"{device} {' '.join(_fields_of(path)[:1])}"


def _kind(path: str) -> str:
    """Return the type of the file system that a path lies on; empty if unknown."""
    fields = _fields_of(path)
    return fields[fields.index("-") + 1] if fields else ""


def _fields_of(path: str) -> list[str]:
    """Return the fields of a path's mount in /proc/self/mountinfo; empty if unknown."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    # btrfs gives each subvolume a device number that no mount has.
    for line in reversed(mounts):
        if (fields := line.split())[2] == wanted:
            return fields
    return []
