"""The fence of locks in the file system: a change of an upload happens while its lock is held, or not at all.

Around each change its holder has a second byte of the range-lock file alone. Whoever wants to end the holder's epoch needs
that byte, so the epoch cannot end between the look at it and the change, even if the process stands still there: the kernel
keeps the byte for it. Nobody else ever takes it, so a holder that does not get it is being given up. Not for: waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from tusd_py.locks.base import LeaseLost
from tusd_py.locks.ofd import ChangeByte


class ChangeFence:
    """See `Fence`. For all threads of the process, which share what the process has of the file: the first one in takes the
    byte and the last one out lets it go.

    byte: of the holder's epoch. is_current: whether that epoch still is; raises OSError. on_loss: is called, in any thread,
    with the reason when the lock turns out to be lost.
    """

    __slots__ = ("_byte", "_inside", "_is_current", "_lock", "_on_loss")

    def __init__(
        self, byte: ChangeByte, is_current: Callable[[], bool], on_loss: Callable[[str], None]
    ) -> None:
        self._byte = byte
        self._is_current = is_current
        self._on_loss = on_loss
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        # Around every write: as few calls as can be.
        with self._lock:
            if not self._inside:
                try:
                    self._byte.take()
                    if not self._is_current():
                        self._refuse("another server took the upload over")
                except BlockingIOError:
                    self._refuse("another server is taking the upload over")
                except (OSError, ValueError) as problem:
                    self._refuse(f"the file system's locks: {problem}")
            self._inside += 1

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _problem: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._let_go()

    def _let_go(self) -> None:
        try:
            self._byte.let_go()
        except (OSError, ValueError):
            # Only of a file that was closed meanwhile, which has let it go.
            return

    def _refuse(self, reason: str) -> NoReturn:
        self._let_go()
        self._on_loss(reason)
        raise LeaseLost(reason)
