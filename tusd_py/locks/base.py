"""The contract of locks: each upload has at most one holder, and a holder can be asked to release the lock.

A connection that died silently would otherwise block its own client's next attempt. So a new request asks for the lock's
release, the holder keeps what it has stored and ends, and the new request continues. Locks protect writing, never reading.

Waiters get the lock in order of arrival. While one that asked for a release is still waiting, each new holder is asked at once,
so that of many attempts of one client the last one wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Protocol, Self, TypeVar


class LockTimeout(Exception):
    """The holder did not release the lock in time."""


class LocksClosed(Exception):
    """The server is shutting down and grants no more locks."""


class LocksUnavailable(Exception):
    """The lock service does not answer, so the holder is unknown. The text is for the log."""


class LeaseLost(Exception):
    """A change was refused because the lock belongs, or may belong, to another holder. The text is for the log."""


Fence = Callable[[], AbstractContextManager[None]]
"""`with fence(): ...` around one change of an upload: it happens while the lock is certainly held, or not at all.

Entering raises LeaseLost. A fence is cheap enough for every write, works in every thread, and is reentrant. The block contains
only the change: no await, and no wait other than that of the change.
"""

_NO_CHECK: AbstractContextManager[None] = nullcontext()


def UNFENCED() -> AbstractContextManager[None]:
    """The fence of changes with which no other holder can interfere, for a reason that the caller knows."""
    return _NO_CHECK


def ensure_held(fence: Fence) -> None:
    """Raise LeaseLost unless the lock is held now. For stores behind a network, right before they send a request."""
    with fence():
        pass


class Lease(Protocol):
    """A held lock, released at the end of an `async with` block. `release` may be called twice."""

    __slots__ = ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.release()

    def on_requested(self, callback: Callable[[], None] | None) -> None:
        """Set the callback that asks the holder to end, called in the event loop; at once if that was asked already.

        It is called when another request asks for the lock's release, or when the lock was lost (then `is_held` is False), and
        perhaps several times.
        """

    def is_held(self) -> bool:
        """Return whether the lock is still held: remote locks can be lost. Cheap enough for every write.

        Once False it stays False, and another holder may be writing: the upload must be neither appended to nor cut back. True
        may be outdated at the next instruction; therefore changes are made within `fence`.
        """

    def fence(self) -> AbstractContextManager[None]:
        """Guard one change of the upload; see `Fence`."""

    async def release(self) -> None:
        """Release the lock to the longest waiter. Never raises: a lock that cannot be released expires."""


T = TypeVar("T")
Waiters = list[tuple[asyncio.Future[T], bool]]
"""Requests of one process that wait for a lock, in order of arrival, and whether each asks for its release."""


class HeldFence:
    """The fence of locks that have no stronger check than `is_held`."""

    __slots__ = ("_is_held",)

    def __init__(self, is_held: Callable[[], bool]) -> None:
        self._is_held = is_held

    def __enter__(self) -> None:
        if not self._is_held():
            raise LeaseLost("the lease has ended")

    def __exit__(self, *_error: object) -> None:
        pass


class AskedLease(Lease):
    """A lease whose holder is told once its release was asked for, whenever it sets its callback."""

    __slots__ = ("_callback", "_requested")

    def __init__(self) -> None:
        self._requested = False
        self._callback: Callable[[], None] | None = None

    def request(self) -> None:
        """Ask the holder to release the lock."""
        self._requested = True
        if self._callback is not None:
            self._callback()

    def on_requested(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback
        if callback is not None and self._requested:
            callback()

    def fence(self) -> HeldFence:
        return HeldFence(self.is_held)

    async def wait_behind(
        self,
        waiters: Waiters[T],
        deadline: float,
        request_release: bool,
        give_back: Callable[[T], None],
    ) -> T:
        """Wait in this process until the future is set, at most until a time of the loop's clock. Raises LockTimeout.

        give_back: gets a result that comes at the very moment of the timeout, as no one else would release it.
        """
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        entry = (waiter, request_release)
        waiters.append(entry)
        if request_release:
            self.request()
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except (TimeoutError, asyncio.CancelledError) as problem:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                give_back(waiter.result())
            elif entry in waiters:
                waiters.remove(entry)
            if isinstance(problem, TimeoutError):
                raise LockTimeout from None
            raise


class UncontestedLease(Lease):
    """A lease on an upload that no other request can know of, because its id was just drawn."""

    def on_requested(self, callback: Callable[[], None] | None) -> None:
        pass

    def is_held(self) -> bool:
        return True

    def fence(self) -> AbstractContextManager[None]:
        return UNFENCED()

    async def release(self) -> None:
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

    def try_acquire(self, upload_id: str) -> Lease | None:
        """Acquire a lock that is free, at once and without asking anybody; None if it is not.

        Also None for locks outside of this process, of which only `acquire` can tell whether they are free.
        """
        return None

    async def is_held_elsewhere(self, upload_id: str) -> bool:
        """Return whether another process holds a lock; False if that cannot be told. Asks nobody to release it."""
        return False

    def can_grant(self) -> bool:
        """Return whether new locks are granted, as far as is known without asking: False while only holders may go on."""
        return True

    def try_acquire_many(
        self, upload_ids: Sequence[str]
    ) -> AbstractAsyncContextManager[Mapping[str, Lease]]:
        """Acquire the locks of those uploads that are free now; the block gets the leases by id, and its end releases them.

        Asks for no release and does not wait. Entering raises LocksClosed, LocksUnavailable; then none is held.
        """

    async def tidy(self, is_gone: Callable[[str], Awaitable[bool]]) -> int:
        """Remove what is stored about uploads for which `is_gone` returns True; returns how many entries.

        Nothing where entries expire by themselves, or are removed on release.
        """
        return 0

    def close(self) -> None:
        """Grant no more locks, and fail all waiters with LocksClosed. Held locks stay held."""

    async def stop(self) -> None:
        """Close, and end background tasks. Remote locks that are still held expire."""
