"""Polling for a condition that nothing signals (a file's size, a process's open sockets)."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], bool], what: str, timeout: float = 60.0, *, interval: float = 0.001
) -> None:
    """Return as soon as ``condition()`` holds; fail with ``what`` after ``timeout`` seconds.

    ``interval``: seconds between two looks, for a condition that costs what is waited for time.
    """
    deadline = time.monotonic() + timeout
    while True:
        # Asked once more after the deadline: it may be over because this process stood still.
        is_late = time.monotonic() > deadline
        if condition():
            return
        assert not is_late, f"waited {timeout} s for {what}"
        time.sleep(interval)
