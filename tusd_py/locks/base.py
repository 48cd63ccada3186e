"""The contract of locks: one holder an upload, and a holder can be asked to let go.

A connection that died without a word would otherwise block its own client's next attempt. So a newcomer asks, the holder
keeps what it has stored and ends, and the newcomer goes on. Locks protect writing, never reading.

Those who wait get the lock in the order in which they came. As long as somebody waits who asked, whoever gets it is asked at
once to let go again, so that of many attempts of one client the last one wins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Protocol


class LockTimeout(Exception):
    """The holder did not let go in time."""


class LocksClosed(Exception):
    """The server is shutting down and grants no more locks."""


class LocksUnavailable(Exception):
    """Nobody can tell who holds the lock: where that is kept does not answer. The text is for the log."""


class LeaseLost(Exception):
    """A change was refused because the lock belongs, or may belong, to another holder. The text is for the log."""


Fence = Callable[[], AbstractContextManager[None]]
"""`with fence(): ...` around one change of an upload: the change happens while the lock is certainly held, or not at all.

Entering raises LeaseLost. Cheap enough for every write, usable in every thread, and entered again within itself. The block
holds the change alone: no await, and no wait that is not the change's own.
"""

_NO_CHECK: AbstractContextManager[None] = nullcontext()


def UNFENCED() -> AbstractContextManager[None]:
    """The fence of changes that no other holder can meet, for a reason that the caller knows."""
    return _NO_CHECK


class Lease(Protocol):
    """A lock that is held. It is let go by `release`; letting go twice does no harm."""

    def on_requested(self, callback: Callable[[], None] | None) -> None:
        """Sets what is called, in the event loop, when the holder shall end; at once if it shall already.

        That is when somebody else asks for the lock, or when the lock was lost (then `is_held` is False). It may be called
        several times.
        """

    def is_held(self) -> bool:
        """Whether the lock is still ours: locks that live elsewhere can be lost. Asked before bytes are made to count.

        Cheap enough for every write. Once False it stays False, and somebody else may be writing: what is in the store is no
        longer ours, neither to add to nor to cut back. True is a hint that may be out of date at the next instruction;
        changes are made within `fence`.
        """

    def fence(self) -> AbstractContextManager[None]:
        """Guard one change of the upload. See `Fence`, which this method is a value of."""

    async def release(self) -> None:
        """Lets go; whoever waits longest goes on. Never raises: a lock that cannot be let go of runs out."""


class UncontestedLease:
    """For what nobody else can know of yet, such as an upload whose id was just drawn: held without asking anybody."""

    def on_requested(self, callback: Callable[[], None] | None) -> None:
        pass

    def is_held(self) -> bool:
        return True

    def fence(self) -> AbstractContextManager[None]:
        return UNFENCED()

    async def release(self) -> None:
        pass


class HeldFence:
    """Fence of locks that have nothing but `is_held` to tell whether they are held."""

    __slots__ = ("_is_held",)

    def __init__(self, is_held: Callable[[], bool]) -> None:
        self._is_held = is_held

    def __enter__(self) -> None:
        if not self._is_held():
            raise LeaseLost("the lease is over")

    def __exit__(self, *_error: object) -> None:
        pass


class Locks(Protocol):
    """Locks by upload id."""

    async def acquire(
        self, upload_id: str, *, timeout: float, request_release: bool = True
    ) -> Lease:
        """Acquire the lock of an upload.

        Args:
            upload_id: The upload.
            timeout: Seconds to wait for the current holder; 0 to take the lock only if it is free.
            request_release: Ask the current holder to release it.

        Raises:
            LockTimeout: It was not released in time.
            LocksClosed: The server is shutting down.
            LocksUnavailable: The lock service does not answer.
        """

    def try_acquire_many(
        self, upload_ids: Sequence[str]
    ) -> AbstractAsyncContextManager[Mapping[str, Lease]]:
        """The locks of those uploads that are free now, by id, let go at the end of the block; for many at a time.

        Nobody is asked and nobody waits. Entering raises LocksClosed, LocksUnavailable; then none is held.
        """

    async def tidy(self, is_gone: Callable[[str], Awaitable[bool]]) -> int:
        """Removes what is kept about uploads that are gone, as `is_gone` tells; returns how many things went."""

    def close(self) -> None:
        """Lets everybody who waits fail with LocksClosed, and grants no more. What is held stays held."""

    async def stop(self) -> None:
        """Closes, and ends what goes on in the background. Locks that are still held run out if they live elsewhere."""
