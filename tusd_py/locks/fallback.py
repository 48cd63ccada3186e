"""Locks of several processes and machines that share Redis, and a file system that works without it.

Redis orders the requests: it keeps the queue, tells holders to release, and hands the lock over at once. The file system
decides who may change an upload: a holder always has the upload's byte exclusively (`ofd.py`), from before it reads the upload
until it releases the lock. So if Redis grants a lock twice, because it lost its data or failed over, there are still not two
holders. While Redis is unavailable, the byte alone decides.

A request with the lock from Redis waits for the byte: a running holder learns within a quarter of a lease that it lost the lock
in Redis, keeps what arrived and releases. A hanging holder does not; after half a lease the new request takes over, by starting
a new epoch of the upload (`epochs.py`) with bytes of its own. Every change of an upload is made within a fence (`ofd.py`)
that refuses changes of a past epoch, so taking over is always safe; the wait only spares running holders.

Waiters poll the byte. A second byte says that they ask for its release; holders that Redis may have forgotten poll that one.
Within a process, locks in memory keep requests apart, as its bytes belong to the whole process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress

from tusd_py import logs
from tusd_py.background import cancel, keep_running
from tusd_py.locks.base import Lease, LeaseLost, Locks, LocksClosed, LocksUnavailable, LockTimeout
from tusd_py.locks.epochs import FIRST, Epochs, range_name
from tusd_py.locks.memory import MemoryLease, MemoryLocks
from tusd_py.locks.ofd import ChangeFence, OfdLocks
from tusd_py.locks.redis import RedisLease, RedisLocks
from tusd_py.redis import RedisClient

logger = logging.getLogger(__name__)

_MIN_POLL_SECONDS = 0.02
"""First pause between two attempts for a byte; doubled each time, up to `_MAX_POLL_SECONDS`."""
_MAX_POLL_SECONDS = 0.25
"""Also the interval in which holders that Redis may have forgotten check for requests."""


class FallbackLocks(Locks):
    """See `Locks`. ranges, epochs: in a directory shared by all servers of the uploads; closed by `stop`."""

    def __init__(
        self, redis: RedisLocks, ranges: OfdLocks, epochs: Epochs, redis_client: RedisClient
    ) -> None:
        self._redis = redis
        self._ranges = ranges
        self._epochs = epochs
        self._redis_client = redis_client
        self._memory = MemoryLocks()
        self._held: dict[str, FallbackLease] = {}
        self._watched: set[FallbackLease] = set()
        self._closed = False
        self._watcher: asyncio.Task[None] | None = None
        redis.on_silence = self._watch_all

    async def acquire(
        self, upload_id: str, *, timeout: float, request_release: bool = True
    ) -> FallbackLease:
        deadline = asyncio.get_running_loop().time() + timeout
        granted = await self._acquire_in_redis(upload_id, timeout, request_release)
        try:
            # At half time, so that the other half is left for the request itself.
            takeover_seconds = min(self._redis.duration, timeout) / 2
            return await self._acquire(
                upload_id, deadline, request_release, granted, takeover_seconds
            )
        except BaseException:
            if granted is not None:
                await granted.release()
            raise

    async def _acquire_in_redis(
        self, upload_id: str, timeout: float, request_release: bool
    ) -> RedisLease | None:
        """Acquire the lock in Redis; None if Redis is unavailable."""
        if not self._redis_client.available:
            return None
        try:
            return await self._redis.acquire(
                upload_id, timeout=timeout, request_release=request_release
            )
        except LocksUnavailable:
            return None

    async def _acquire(
        self,
        upload_id: str,
        deadline: float,
        request_release: bool,
        granted: RedisLease | None,
        takeover_seconds: float = 0.0,
    ) -> FallbackLease:
        """takeover_seconds: wait before taking over from a holder unknown to Redis, if `request_release`."""
        loop = asyncio.get_running_loop()
        left = max(deadline - loop.time(), 0)
        mine = await self._memory.acquire(upload_id, timeout=left, request_release=request_release)
        try:
            epoch = await self._acquire_byte(
                upload_id, granted, deadline, request_release, loop.time() + takeover_seconds
            )
        except BaseException:
            await mine.release()
            raise
        lease = self._held[upload_id] = FallbackLease(self, upload_id, mine, granted, epoch)
        if granted is None:
            self.watch(lease)
        return lease

    async def _acquire_byte(
        self,
        upload_id: str,
        granted: RedisLease | None,
        deadline: float,
        request_release: bool,
        takeover_at: float,
    ) -> str:
        """Wait for the byte, and return its epoch. Raises LockTimeout, LocksClosed, LocksUnavailable."""
        loop = asyncio.get_running_loop()
        pause = _MIN_POLL_SECONDS
        asking = False
        try:
            while (epoch := self._try_byte(upload_id)) is None:
                left = deadline - loop.time()
                if self._closed:
                    raise LocksClosed
                if left <= 0:
                    raise LockTimeout
                if request_release and granted is not None and loop.time() >= takeover_at:
                    epoch = self._take_over(upload_id, granted)
                    if epoch is not None:
                        break
                if request_release and not asking:
                    asking = True
                    self._ranges.set_requested(upload_id, on=True)
                await asyncio.sleep(min(pause, left))
                pause = min(pause * 2, _MAX_POLL_SECONDS)
            return epoch
        except OSError as problem:
            raise LocksUnavailable(f"the file system's locks: {problem}") from None
        finally:
            if asking:
                with suppress(OSError):
                    self._ranges.set_requested(upload_id, on=False)

    def _try_byte(self, upload_id: str) -> str | None:
        """Try to lock the byte of the current epoch, and return that if it could be had. Raises OSError."""
        epoch = self._epochs.read(upload_id)
        name = range_name(upload_id, epoch)
        if not self._ranges.acquire(name, exclusive=True):
            return None
        try:
            is_current = self._epochs.read(upload_id) == epoch
        except OSError:
            # A byte that nobody releases would keep every other process out for good.
            self._ranges.release(name)
            raise
        if not is_current:
            # The epoch ended before we had the byte.
            self._ranges.release(name)
            return None
        return epoch

    def _take_over(self, upload_id: str, granted: RedisLease) -> str | None:
        """Try to begin a new epoch, and return it: only with the lock in Redis, and not during a change. Raises OSError."""
        epoch = self._epochs.read(upload_id)
        change = self._ranges.change_byte(range_name(upload_id, epoch))
        try:
            change.acquire()
        except (BlockingIOError, PermissionError):
            return None
        try:
            if self._epochs.read(upload_id) != epoch or not granted.is_held():
                return None
            following = self._epochs.new()
            name = range_name(upload_id, following)
            # Before any other process can learn of it.
            self._ranges.acquire(name, exclusive=True)
            try:
                self._epochs.write(upload_id, following)
            except OSError:
                self._ranges.release(name)
                raise
        finally:
            change.release()
        logs.event(
            logger,
            logging.WARNING,
            "lock taken over",
            upload=upload_id,
            reason="its holder did not release it, and Redis no longer knows the holder",
        )
        return following

    def fence(
        self, byte: str, upload_id: str, epoch: str, on_loss: Callable[[str], None]
    ) -> ChangeFence:
        """Return the fence of a holder of that byte."""
        is_current = self._epochs.is_current(upload_id, epoch)
        return ChangeFence(self._ranges.change_byte(byte), is_current, on_loss)

    def watch(self, lease: FallbackLease) -> None:
        """Poll for release requests to a holder, as Redis may not know that it holds the lock."""
        self._watched.add(lease)
        if self._watcher is None or self._watcher.done():
            self._watcher = keep_running(self._watch, "file locks")

    def _watch_all(self) -> None:
        """Poll for all holders, as Redis does not answer."""
        for lease in self._held.values():
            self.watch(lease)

    async def _watch(self) -> None:
        """Pass release requests on to the watched holders."""
        while self._watched:
            for lease in list(self._watched):
                with suppress(OSError):
                    if self._ranges.is_requested(lease.upload_id):
                        lease.request()
            await asyncio.sleep(_MAX_POLL_SECONDS)

    async def is_held_elsewhere(self, upload_id: str) -> bool:
        # A holder has the byte, whether Redis knows of it or not.
        try:
            return self._ranges.is_held(range_name(upload_id, self._epochs.read(upload_id)))
        except OSError:
            return False

    @asynccontextmanager
    async def try_acquire_many(
        self, upload_ids: Sequence[str]
    ) -> AsyncIterator[dict[str, FallbackLease]]:
        # Callers for many locks can wait until Redis is available.
        async with self._redis.try_acquire_many(upload_ids) as granted:
            leases: dict[str, FallbackLease] = {}
            try:
                for upload_id, each in granted.items():
                    with suppress(LockTimeout):
                        leases[upload_id] = await self._acquire(upload_id, 0.0, False, each)
                yield leases
            finally:
                # The inner block releases the locks in Redis, all at once.
                for lease in leases.values():
                    await self._release_local(lease)

    async def release(self, lease: FallbackLease) -> None:
        """Release all parts of a lease."""
        if await self._release_local(lease) and lease.granted is not None:
            await lease.granted.release()

    async def _release_local(self, lease: FallbackLease) -> bool:
        """Release all but the lock in Redis, the byte first, as the next holder needs it. False if released before."""
        if self._held.get(lease.upload_id) is not lease:
            return False
        del self._held[lease.upload_id]
        self._watched.discard(lease)
        with suppress(OSError):
            self._ranges.release(lease.end())
        await lease.mine.release()
        return True

    async def tidy(self, is_gone: Callable[[str], Awaitable[bool]]) -> int:
        """Return removed uploads to their first epoch, unless a holder of that epoch may still run."""
        removed = 0
        with suppress(OSError):
            removed += self._epochs.remove_abandoned()
            for upload_id in self._epochs.ids():
                if not await is_gone(upload_id):
                    continue
                # What is wrong with one is not in the way of the others.
                with suppress(LockTimeout, LocksClosed, OSError):
                    mine = await self._memory.acquire(upload_id, timeout=0, request_release=False)
                    try:
                        removed += self._forget_epoch(upload_id)
                    finally:
                        await mine.release()
        return removed

    def _forget_epoch(self, upload_id: str) -> bool:
        """Forget an upload's epoch if the bytes of the current and the first epoch are free; returns whether they were."""
        epoch = self._epochs.read(upload_id)
        taken: list[str] = []
        try:
            for name in (range_name(upload_id, FIRST), range_name(upload_id, epoch)):
                if not self._ranges.acquire(name, exclusive=True):
                    return False
                taken.append(name)
            if self._epochs.read(upload_id) != epoch:
                return False
            self._epochs.forget(upload_id)
            return True
        finally:
            for name in taken:
                self._ranges.release(name)

    def close(self) -> None:
        self._closed = True
        self._redis.close()
        self._memory.close()

    async def stop(self) -> None:
        self.close()
        await self._redis.stop()
        await cancel(self._watcher)
        self._ranges.close()


class FallbackLease(Lease):
    """See `Lease`. granted: the lock in Redis, if available; mine: the lock in this process; epoch: that of the held byte."""

    __slots__ = (
        "_byte",
        "_callback",
        "_fence",
        "_is_held",
        "_is_lost",
        "_locks",
        "_loop",
        "granted",
        "mine",
        "upload_id",
    )

    def __init__(
        self,
        locks: FallbackLocks,
        upload_id: str,
        mine: MemoryLease,
        granted: RedisLease | None,
        epoch: str,
    ) -> None:
        self.upload_id = upload_id
        self.mine = mine
        self.granted = granted
        self._locks = locks
        self._loop = asyncio.get_running_loop()
        self._callback: Callable[[], None] | None = None
        self._byte = range_name(upload_id, epoch)
        self._fence = locks.fence(self._byte, upload_id, epoch, self.lose)
        self._is_held = True
        self._is_lost = False

    def end(self) -> str:
        """Stop holding the lock; returns the name of the byte to release."""
        self._is_held = False
        return self._byte

    def lose(self, reason: str) -> None:
        """Mark the lock as lost to another holder. For any thread."""
        if self._is_held:
            self._is_held = False
            self._is_lost = True
            logs.event(
                logger, logging.WARNING, "changes refused", upload=self.upload_id, reason=reason
            )
            self._loop.call_soon_threadsafe(self.request)

    def request(self) -> None:
        """Ask the holder to release the lock."""
        if self._callback is not None:
            self._callback()

    def on_requested(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback
        self.mine.on_requested(callback)
        if self.granted is not None:
            self.granted.on_requested(None if callback is None else self._on_redis_request)
        if self._is_lost:
            self.request()

    def _on_redis_request(self) -> None:
        granted = self.granted
        if granted is None or granted.is_held() or granted.taken:
            self.request()
        else:
            # The lock in Redis expired, perhaps unnoticed by others: we still have the byte.
            self._locks.watch(self)

    def is_held(self) -> bool:
        return self._is_held

    def fence(self) -> AbstractContextManager[None]:
        if not self._is_held:
            raise LeaseLost("the lease has ended")
        return self._fence

    async def release(self) -> None:
        await self._locks.release(self)
