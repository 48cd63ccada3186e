"""Locks of one process, in its memory. They cannot be lost and are always available, but hold for this process only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tusd_py.locks.base import AskedLease, Locks, LocksClosed, Waiters


class MemoryLocks(Locks):
    """See `Locks`."""

    def __init__(self) -> None:
        self._held: dict[str, MemoryLease] = {}
        self._closed = False

    async def acquire(
        self, upload_id: str, *, timeout: float, request_release: bool = True
    ) -> MemoryLease:
        if self._closed:
            raise LocksClosed
        holder = self._held.get(upload_id)
        if holder is None:
            lease = self._held[upload_id] = MemoryLease(self, upload_id)
            return lease
        deadline = asyncio.get_running_loop().time() + timeout
        return await holder.wait_behind(
            holder.waiters, deadline, request_release, MemoryLease.hand_over
        )

    def try_acquire(self, upload_id: str) -> MemoryLease | None:
        if self._closed or upload_id in self._held:
            return None
        lease = self._held[upload_id] = MemoryLease(self, upload_id)
        return lease

    @asynccontextmanager
    async def try_acquire_many(
        self, upload_ids: Sequence[str]
    ) -> AsyncIterator[dict[str, MemoryLease]]:
        if self._closed:
            raise LocksClosed
        leases = {
            upload_id: MemoryLease(self, upload_id)
            for upload_id in upload_ids
            if upload_id not in self._held
        }
        self._held.update(leases)
        try:
            yield leases
        finally:
            for lease in leases.values():
                lease.hand_over()

    def close(self) -> None:
        self._closed = True
        for lease in self._held.values():
            for waiter, _ in lease.waiters:
                if not waiter.done():
                    waiter.set_exception(LocksClosed())
            lease.waiters.clear()

    async def stop(self) -> None:
        self.close()


class MemoryLease(AskedLease):
    """See `Lease`."""

    __slots__ = ("_locks", "_upload_id", "waiters")

    def __init__(self, locks: MemoryLocks, upload_id: str) -> None:
        super().__init__()
        self._locks = locks
        self._upload_id = upload_id
        # A list, as most leases live without a waiter, and an empty deque takes 600 bytes.
        self.waiters: Waiters[MemoryLease] = []

    def is_held(self) -> bool:
        return self._locks._held.get(self._upload_id) is self

    async def release(self) -> None:
        self.hand_over()

    def hand_over(self) -> None:
        """Hand the lock over to the longest waiter, if any."""
        if not self.is_held():
            return
        while self.waiters:
            waiter, _ = self.waiters.pop(0)
            if not waiter.done():
                successor = MemoryLease(self._locks, self._upload_id)
                successor.waiters = self.waiters
                successor._requested = any(requested for _, requested in self.waiters)
                self._locks._held[self._upload_id] = successor
                waiter.set_result(successor)
                return
        del self._locks._held[self._upload_id]
