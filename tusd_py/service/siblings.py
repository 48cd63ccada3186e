"""Processes that serve the same uploads: what one of them knows of the others, and which of them does what is done once.

An application that mounts the component is often run in several processes (`uvicorn --workers`, gunicorn). They have no parent
of ours, so they settle by locks of files in the state directory who leads and which number each has; the system takes a lock
from a process that dies. Not for: uploads' locks, and processes of `tusd-py serve --workers`, which their parent numbers.
"""

from __future__ import annotations

import asyncio
import fcntl
import multiprocessing
import os
import shutil
import socket
from contextlib import suppress
from enum import Enum
from pathlib import Path

_POLL_SECONDS = 0.5
_LEADER = "leader.lock"
_SLOTS = "processes.lock"


class Sharing(Enum):
    """Who else serves the uploads of a process, beside servers that share its `redis_url`."""

    ALONE = "alone"
    """Nobody: it locks the upload directory for itself."""
    CHILD = "child"
    """Other processes of one parent, which has locked the directory and numbers them."""
    SIBLING = "sibling"
    """Perhaps other processes like it, which start and end at any time."""


def found_here() -> Sharing:
    """What the program that runs this process tells: SIBLING where it may run several, such as under `uvicorn --workers`."""
    is_spawned = multiprocessing.parent_process() is not None
    # gunicorn forks, and replaces even a single worker by another one that begins before the first has ended.
    is_forked = os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn/")
    return Sharing.SIBLING if is_spawned or is_forked else Sharing.ALONE


class Leadership:
    """The right to do for all siblings what one has to do; of one process at a time, until it releases it or dies."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / _LEADER
        self._lock: int | None = None

    def try_acquire(self) -> bool:
        """Return whether it is this process's now. Raises OSError."""
        if self._lock is None:
            self._lock = _try_lock(self._path)
        return self._lock is not None

    async def acquire(self) -> None:
        """Wait until it is this process's. Raises OSError."""
        while True:
            if self.try_acquire():
                return
            await asyncio.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Let another process lead."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Slot:
    """A number that no other sibling has, for as long as this process lives. Blocking, but for moments.

    directory: of the siblings, for what they tell each other. Raises OSError.
    """

    def __init__(self, parent: Path) -> None:
        # Their program may run beside another one on the same uploads, and is all that they have in common.
        self.directory = parent / f"{socket.gethostname()}-of-{os.getppid()}"
        parent.mkdir(parents=True, exist_ok=True)
        choosing = os.open(parent / _SLOTS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(choosing, fcntl.LOCK_EX)
            _remove_abandoned(parent)
            self.directory.mkdir(exist_ok=True)
            self.number, self._lock = self._take()
        finally:
            os.close(choosing)

    def _take(self) -> tuple[int, int]:
        number = 0
        while (lock := _try_lock(self.directory / f"{number}.lock")) is None:
            number += 1
        return number, lock

    def release(self) -> None:
        """Let another process have the number."""
        os.close(self._lock)


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories of siblings that have all ended. For who chooses a number."""
    for directory in parent.glob(f"{socket.gethostname()}-of-*"):
        locks = [_try_lock(path) for path in directory.glob("*.lock")]
        if None not in locks:
            shutil.rmtree(directory, ignore_errors=True)
        for lock in locks:
            if lock is not None:
                os.close(lock)


def _try_lock(path: Path) -> int | None:
    """The descriptor of a lock file that is locked now; None if another process has it. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    os.close(descriptor)
    return None
