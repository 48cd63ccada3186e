"""Measures how long an operation waited, without the time in which its thread was runnable but had no processor.

On a busy machine a thread may not run for tens of milliseconds, which looks like a slow disk to the wall clock. Linux counts
that time per thread (`schedstat`); on other systems all time counts as waiting.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

_PATH = "/proc/thread-self/schedstat"
_MAX_BYTES = 128


class _Counter:
    """The kernel's counter for the thread that created this object."""

    __slots__ = ("_descriptor",)

    def __init__(self) -> None:
        self._descriptor = -1
        with suppress(OSError):
            self._descriptor = os.open(_PATH, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self) -> float:
        """Return the seconds without a processor since the thread started; 0 if unknown."""
        if self._descriptor < 0:
            return 0.0
        try:
            # Seconds of work, seconds without a processor, and a count; all in nanoseconds.
            return int(os.pread(self._descriptor, _MAX_BYTES, 0).split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0


class WaitClock(threading.local):
    """A clock per thread. looked_at: when `look` was last called in this thread, by the monotonic clock."""

    def __init__(self) -> None:
        self._counter = _Counter()
        self._delay = 0.0
        self.looked_at = float("-inf")

    def look(self, now: float) -> None:
        """Start counting. Call it shortly before the measured operation; see `waited`."""
        self.looked_at = now
        self._delay = self._counter.read()

    def waited(self, began: float, ended: float) -> float:
        """Return the seconds between two times in which this thread may have waited for something other than a processor.

        Never too few: the whole time between the last look and `began` is taken to be without a processor.
        """
        before = max(0.0, began - self.looked_at)
        delay = self._counter.read() - self._delay - before
        return ended - began - max(0.0, delay)
