"""When a worker or a scheduler has to end: it is told by a signal, or by the end of the process that started it."""

from __future__ import annotations

import os
import signal
import sys
import threading

from tusd_py.process.sidecars import SUPERVISED


def follow_parent() -> None:
    """Asks this process to end (SIGTERM) when its parent has, if it was started that way."""
    if os.environ.get(SUPERVISED):
        follow(sys.stdin.fileno())


def follow(descriptor: int) -> None:
    """Asks this process to end when what a descriptor reads from does."""

    def wait() -> None:
        # Not by a file object: its lock would be in the way of the interpreter's end.
        while os.read(descriptor, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
