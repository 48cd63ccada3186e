"""Ends a worker or a scheduler together with the process that started it."""

from __future__ import annotations

import os
import signal
import sys
import threading

from tusd_py.process.sidecars import SUPERVISED


def follow_parent() -> None:
    """Send SIGTERM to this process when its parent ends, if it was started as a sidecar."""
    if os.environ.get(SUPERVISED):
        follow(sys.stdin.fileno())


def follow(descriptor: int) -> None:
    """Send SIGTERM to this process when the other end of a descriptor is closed."""

    def wait() -> None:
        # Not with a file object: its lock would block the interpreter's shutdown.
        while os.read(descriptor, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
