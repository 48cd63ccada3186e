"""The contract of locks: one holder an upload, and a holder can be asked to let go.

A connection that died without a word would otherwise block its own client's next attempt. So a newcomer asks, the holder
keeps what it has stored and ends, and the newcomer goes on. Locks protect writing, never reading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class LockTimeout(Exception):
    """The holder did not let go in time."""


class LocksClosed(Exception):
    """The server is shutting down and grants no more locks."""


class Lease(Protocol):
    """A lock that is held. It is let go by `release`, exactly once."""

    def on_requested(self, callback: Callable[[], None] | None) -> None:
        """Sets what is called, in the event loop, when somebody else asks for the lock; at once if that happened before."""

    def is_held(self) -> bool:
        """Whether the lock is still ours: locks that live elsewhere can be lost. Asked before bytes are made to count."""

    async def release(self) -> None:
        """Lets go; whoever waits longest goes on."""


class Locks(Protocol):
    """Locks by upload id."""

    async def acquire(self, upload_id: str, *, timeout: float, ask: bool = True) -> Lease:
        """Waits up to `timeout` seconds for the lock; with `ask`, its holder is asked to let go.

        Raises LockTimeout, LocksClosed.
        """

    def close(self) -> None:
        """Lets everybody who waits fail with LocksClosed, and grants no more."""
