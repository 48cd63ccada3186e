"""How long an operation waited, without the time for which its thread was ready to go on and had no processor.

On a busy machine a thread stands still for tens of milliseconds because others run. To the wall clock that looks like a slow
disk. Linux counts it per thread (`schedstat`); where it does not, all time counts. Not for: what follows from a slow disk.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

_PATH = "/proc/thread-self/schedstat"
_MOST = 128


class _Counter:
    """The kernel's count for the thread that made this object."""

    __slots__ = ("_descriptor",)

    def __init__(self) -> None:
        self._descriptor = -1
        with suppress(OSError):
            self._descriptor = os.open(_PATH, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self) -> float:
        """Seconds without a processor since the thread began; 0 where nothing tells."""
        if self._descriptor < 0:
            return 0.0
        try:
            # Seconds of work, seconds without a processor, and a count; all in nanoseconds.
            return int(os.pread(self._descriptor, _MOST, 0).split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0


class WaitClock(threading.local):
    """Tells each thread how long it waited. looked_at: when `look` was called last in this thread, by the monotonic clock."""

    def __init__(self) -> None:
        self._counter = _Counter()
        self._delay = 0.0
        self.looked_at = float("-inf")

    def look(self, now: float) -> None:
        """Begin to count from here. To be called shortly before what is measured: see `waited`."""
        self.looked_at = now
        self._delay = self._counter.read()

    def waited(self, began: float, ended: float) -> float:
        """The seconds between two times for which this thread may have waited for something else than a processor.

        Never too few: what it lacked a processor between the last look and `began` is taken to be as long as that was.
        """
        before = max(0.0, began - self.looked_at)
        delay = self._counter.read() - self._delay - before
        return ended - began - max(0.0, delay)
