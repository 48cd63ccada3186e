"""Locks of several processes and machines that have Redis in common, and a file system that outlasts it.

As long as Redis answers, it decides who holds a lock, and the holder has the upload's byte in the file system (`ranges.py`)
together with others: that keeps nobody out to whom Redis gave the lock. Who cannot ask Redis holds the lock if they can have
that byte alone, and so does a holder that Redis left in the middle. The two never hold it at a time: who has the byte
alone finds nobody who has it with others, and the other way round.

Who waits for a byte looks again every so often. That they ask for it is told by a second byte, which those who have one
alone look at. Within a process, locks in its memory keep requests apart whose bytes could not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from tusd_py.background import keep_running
from tusd_py.locks.base import HeldFence, LocksClosed, LocksUnavailable, LockTimeout
from tusd_py.locks.memory import MemoryLease, MemoryLocks
from tusd_py.locks.ranges import RangeLocks
from tusd_py.locks.redis import RedisLease, RedisLocks
from tusd_py.state import State

logger = logging.getLogger(__name__)

_SOON = 0.02
"""Seconds after which a byte is tried for again at first; then twice as long, up to _POLL."""
_POLL = 0.25
"""Seconds, also after which those who have bytes alone look whether somebody asks for them."""


class SharedLocks:
    """See `Locks`. ranges: of a file in a directory that all who share the uploads have in common; closed by `stop`."""

    def __init__(self, redis: RedisLocks, ranges: RangeLocks, state: State) -> None:
        self._redis = redis
        self._ranges = ranges
        self._state = state
        self._memory = MemoryLocks()
        self._held: dict[str, SharedLease] = {}
        self._alone: set[SharedLease] = set()
        self._closed = False
        self._watcher: asyncio.Task[None] | None = None
        redis.on_silence = self._uphold

    async def acquire(self, upload_id: str, *, timeout: float, ask: bool = True) -> SharedLease:
        deadline = asyncio.get_running_loop().time() + timeout
        granted = await self._granted(upload_id, timeout, ask)
        try:
            return await self._acquire(upload_id, deadline, ask, granted)
        except BaseException:
            if granted is not None:
                await granted.release()
            raise

    async def _granted(self, upload_id: str, timeout: float, ask: bool) -> RedisLease | None:
        """What Redis gave, None if it cannot be asked."""
        if not self._state.available:
            return None
        try:
            return await self._redis.acquire(upload_id, timeout=timeout, ask=ask)
        except LocksUnavailable:
            return None

    async def _acquire(
        self, upload_id: str, deadline: float, ask: bool, granted: RedisLease | None
    ) -> SharedLease:
        loop = asyncio.get_running_loop()
        left = max(deadline - loop.time(), 0)
        mine = await self._memory.acquire(upload_id, timeout=left, ask=ask)
        lease = SharedLease(self, upload_id, mine, granted)
        try:
            await self._take(lease, deadline, ask)
        except BaseException:
            await mine.release()
            raise
        self._held[upload_id] = lease
        return lease

    async def _take(self, lease: SharedLease, deadline: float, ask: bool) -> None:
        """Has the byte, as the lease needs it. Raises LockTimeout, LocksClosed, LocksUnavailable."""
        loop = asyncio.get_running_loop()
        pause = _SOON
        asking = False
        try:
            while not self._try(lease):
                left = deadline - loop.time()
                if self._closed:
                    raise LocksClosed
                if left <= 0:
                    raise LockTimeout
                if ask and not asking:
                    asking = True
                    self._ranges.ask(lease.upload_id, on=True)
                await asyncio.sleep(min(pause, left))
                pause = min(pause * 2, _POLL)
        except OSError as problem:
            raise LocksUnavailable(f"the file system's locks: {problem}") from None
        finally:
            if asking:
                with suppress(OSError):
                    self._ranges.ask(lease.upload_id, on=False)

    def _try(self, lease: SharedLease) -> bool:
        alone = lease.granted is None or not lease.granted.is_held()
        if not self._ranges.take(lease.upload_id, alone=alone):
            return False
        if alone:
            self._keep_alone(lease)
        return True

    def _keep_alone(self, lease: SharedLease) -> None:
        lease.alone = True
        self._alone.add(lease)
        if self._watcher is None or self._watcher.done():
            self._watcher = keep_running(self._watch, "file locks")

    def _uphold(self) -> None:
        """Redis does not answer: what is held is held without it from now on, as long as it is certainly ours."""
        for lease in list(self._held.values()):
            if not lease.alone and lease.is_held():
                with suppress(OSError):
                    if self._ranges.take(lease.upload_id, alone=True):
                        self._keep_alone(lease)

    async def _watch(self) -> None:
        """Passes on what others ask of those who have bytes alone."""
        while self._alone:
            for lease in list(self._alone):
                with suppress(OSError):
                    if self._ranges.is_asked(lease.upload_id):
                        lease.request()
            await asyncio.sleep(_POLL)

    @asynccontextmanager
    async def those_free(self, upload_ids: Sequence[str]) -> AsyncIterator[dict[str, SharedLease]]:
        # Who wants many can wait for a Redis that is away.
        async with self._redis.those_free(upload_ids) as granted:
            leases: dict[str, SharedLease] = {}
            try:
                for upload_id, each in granted.items():
                    with suppress(LockTimeout):
                        leases[upload_id] = await self._acquire(upload_id, 0.0, False, each)
                yield leases
            finally:
                # What Redis gave is let go of by the inner block, all at once.
                for lease in leases.values():
                    await self._let_go(lease)

    async def release(self, lease: SharedLease) -> None:
        """Lets everything go that the lease stands on."""
        if await self._let_go(lease) and lease.granted is not None:
            await lease.granted.release()

    async def _let_go(self, lease: SharedLease) -> bool:
        """Lets go of all but what Redis gave, the byte first: whoever is next needs it. False if that was done before."""
        if self._held.get(lease.upload_id) is not lease:
            return False
        del self._held[lease.upload_id]
        self._alone.discard(lease)
        lease.alone = False
        with suppress(OSError):
            self._ranges.let_go(lease.upload_id)
        await lease.mine.release()
        return True

    def close(self) -> None:
        self._closed = True
        self._redis.close()
        self._memory.close()

    async def stop(self) -> None:
        self.close()
        await self._redis.stop()
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        self._ranges.close()


class SharedLease:
    """See `Lease`. granted: what Redis gave, if it could be asked; mine: this process' part. alone: whether the byte is had
    alone, so that the lease holds without Redis."""

    __slots__ = ("_callback", "_locks", "alone", "granted", "mine", "upload_id")

    def __init__(
        self, locks: SharedLocks, upload_id: str, mine: MemoryLease, granted: RedisLease | None
    ) -> None:
        self.upload_id = upload_id
        self.mine = mine
        self.granted = granted
        self.alone = False
        self._locks = locks
        self._callback: Callable[[], None] | None = None

    def request(self) -> None:
        """Its holder shall end."""
        if self._callback is not None:
            self._callback()

    def on_requested(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback
        self.mine.on_requested(callback)
        if self.granted is not None:
            self.granted.on_requested(None if callback is None else self._redis_wants)

    def _redis_wants(self) -> None:
        # That Redis' lock was lost does not matter to who has the byte alone.
        if self.granted is not None and self.alone and not self.granted.is_held():
            return
        self.request()

    def is_held(self) -> bool:
        return self.alone or (self.granted is not None and self.granted.is_held())

    def fence(self) -> HeldFence:
        return HeldFence(self.is_held)

    async def release(self) -> None:
        await self._locks.release(self)
