"""A page of memory through which a test sets the clock of a process, and has its system calls fail.

The process maps a file that the test has mapped, too, and asks it at each call: nothing is sent.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from pathlib import Path
from typing import Literal

_SIZE = 4096
_SHIFT = struct.Struct("d")
_COUNT = struct.Struct("q")

Failing = Literal["write", "sync"]
_PLACES: dict[Failing, tuple[int, int]] = {"write": (8, 16), "sync": (24, 32)}
"""Where it is written how often a call was to fail so far, and how often it did."""


class Page:
    """The page in a file, which is made if it is missing."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE)
            self._memory = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)

    @property
    def shift(self) -> float:
        """Seconds by which the process's clock is ahead."""
        shift: float = _SHIFT.unpack_from(self._memory)[0]
        return shift

    @shift.setter
    def shift(self, seconds: float) -> None:
        _SHIFT.pack_into(self._memory, 0, seconds)

    def fail(self, call: Failing, times: int) -> None:
        """Have the next calls fail with EIO."""
        self._set(_PLACES[call][0], self._get(_PLACES[call][0]) + times)

    def give_up(self, call: Failing) -> None:
        """Let calls succeed again that have not failed yet."""
        self._set(_PLACES[call][0], self.failed(call))

    def failed(self, call: Failing) -> int:
        """How often a call has failed."""
        return self._get(_PLACES[call][1])

    def is_to_fail(self, call: Failing) -> bool:
        """Whether the next call is to fail. For the process."""
        wanted, done = _PLACES[call]
        return self._get(done) < self._get(wanted)

    def check(self, call: Failing) -> None:
        """Raise OSError if this call is to fail. For the process."""
        if self.is_to_fail(call):
            self._set(_PLACES[call][1], self.failed(call) + 1)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _get(self, place: int) -> int:
        count: int = _COUNT.unpack_from(self._memory, place)[0]
        return count

    def _set(self, place: int, count: int) -> None:
        _COUNT.pack_into(self._memory, place, count)
