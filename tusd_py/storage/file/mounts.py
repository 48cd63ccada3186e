"""Properties of the file system that a path lies on, from its type."""

from __future__ import annotations

import os
from pathlib import Path

_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs"}
"""Types that only this machine writes to, and whose `syncfs` syncs no other file system and reports its errors."""

_KEEPS_ORDER = {"ext3", "ext4", "xfs", "btrfs", "f2fs", "overlay", "tmpfs"}
"""Types that write changes of names and sizes to the disk in order."""

UNKNOWN = "-"
"""In place of the id of a mount."""
_SHOWN = Path("/sys/fs")
_DRIVERS = {"ext2": "ext4", "ext3": "ext4"}
"""Types that another one's driver mounts."""


def keeps_order(path: str) -> bool:
    """Return whether names and sizes are certain to reach the disk in the order of their changes. Raises OSError."""
    return _kind(path) in _KEEPS_ORDER


def is_local(path: str) -> bool:
    """Return whether a path is certain to lie on a disk of this machine. Raises OSError."""
    return _kind(path) in _LOCAL


def mount_of(path: str) -> str:
    """Return an id of the device and of its mount that is unique since boot, and the same for all processes. Raises OSError.

    Not the number of the mount: that is another one in each mount namespace, and in each directory that is bind-mounted.
    """
    device = os.stat(path).st_dev
    try:
        shown = _shown(device, _fields_of(path))
        return f"{device} {shown.parent.name}:{shown.stat().st_ino}"
    except (OSError, LookupError, ValueError):
        # Without sysfs, or with a file system that shows nothing there.
        return f"{device} {UNKNOWN}"


def _shown(device: int, mount: list[str]) -> Path:
    """Return where the kernel shows a file system for as long as it is mounted. Raises LookupError, ValueError."""
    if "-" not in mount:
        raise LookupError("unknown mount")
    kind, source = mount[mount.index("-") + 1 :][:2]
    if kind == "btrfs":
        [found] = _SHOWN.glob(f"btrfs/*/devices/{os.path.basename(os.path.realpath(source))}")
        return found.parents[1]
    block = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    return _SHOWN / _DRIVERS.get(kind, kind) / os.path.basename(block)


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
