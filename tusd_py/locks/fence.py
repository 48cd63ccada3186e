"""The fence of locks in the file system: a change of an upload happens while its lock is held, or not at all.

During each change its holder locks a second byte of the range-lock file exclusively. A process that wants to end the holder's
epoch needs that byte, so the epoch cannot end between the check and the change, even if the holder's process is stopped there:
the kernel keeps the byte locked. No one else ever locks it, so a holder that does not get it is being taken over. Never waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from tusd_py.locks.base import LeaseLost
from tusd_py.locks.ofd import ChangeByte


class ChangeFence:
    """See `Fence`. The threads of a process share its byte: the first one in locks it, the last one out releases it.

    Args:
        byte: That of the holder's epoch.
        is_current: Returns whether that epoch is still current; raises OSError.
        on_loss: Called in any thread, with the reason, when the lock turns out to be lost.
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
        # Runs around every write, hence with as few calls as possible.
        with self._lock:
            if not self._inside:
                try:
                    self._byte.acquire()
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
                self._release()

    def _release(self) -> None:
        try:
            self._byte.release()
        except (OSError, ValueError):
            # The file was closed meanwhile, which released the byte.
            return

    def _refuse(self, reason: str) -> NoReturn:
        self._release()
        self._on_loss(reason)
        raise LeaseLost(reason)
