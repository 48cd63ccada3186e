"""Locks of several processes and machines that have Redis in common, and a file system that outlasts it.

Two things decide. Redis decides whose turn it is: it knows who waits, tells holders that they are asked, and hands over at
once. The file system decides who may change an upload: a holder always has the upload's byte alone (`ranges.py`), from before
it reads the upload until it releases the lock, so two that Redis granted the lock at a time, because it lost its data or
failed over, are never both holders. Who cannot ask Redis goes by the byte alone.

Who got the lock from Redis waits for the byte like this: a holder that lives learns within a quarter of a lease that it has
lost Redis' lock, keeps what arrived and releases. One that stands still does not; after half a lease the newcomer gives it
up, by beginning a new epoch of the upload (`epochs.py`), with bytes of its own. Every change of an upload is made within a
fence (`fence.py`) that refuses those of a holder whose epoch is over, so giving up a holder is always safe; the wait is there
for those that live.

Who waits for a byte looks again every so often. That they ask for it is told by another byte, which those that Redis may have
forgotten look at. Within a process, locks in its memory keep requests apart whose bytes could not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress

from tusd_py import logs
from tusd_py.background import keep_running
from tusd_py.locks.base import LeaseLost, LocksClosed, LocksUnavailable, LockTimeout
from tusd_py.locks.epochs import FIRST, Epochs, place_name
from tusd_py.locks.fence import ChangeFence
from tusd_py.locks.memory import MemoryLease, MemoryLocks
from tusd_py.locks.ofd import OfdLocks
from tusd_py.locks.redis import RedisLease, RedisLocks
from tusd_py.redis import RedisClient

logger = logging.getLogger(__name__)

_SOON = 0.02
"""Seconds after which a byte is tried for again at first; then twice as long, up to _POLL."""
_POLL = 0.25
"""Seconds, also after which holders that Redis may have forgotten look whether somebody asks for them."""


class FallbackLocks:
    """See `Locks`. ranges, epochs: in a directory that all who share the uploads have in common; closed by `stop`."""

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
        granted = await self._granted(upload_id, timeout, request_release)
        try:
            # With half of the time that there is, so that the other half is left to come to an end in.
            patience = min(self._redis.duration, timeout) / 2
            return await self._acquire(upload_id, deadline, request_release, granted, patience)
        except BaseException:
            if granted is not None:
                await granted.release()
            raise

    async def _granted(
        self, upload_id: str, timeout: float, request_release: bool
    ) -> RedisLease | None:
        """What Redis gave, None if it cannot be asked."""
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
        patience: float = 0.0,
    ) -> FallbackLease:
        """patience: seconds after which a holder is given up that Redis knows nothing of any more; only by those who ask."""
        loop = asyncio.get_running_loop()
        left = max(deadline - loop.time(), 0)
        mine = await self._memory.acquire(upload_id, timeout=left, request_release=request_release)
        lease = FallbackLease(self, upload_id, mine, granted)
        try:
            await self._take(lease, deadline, request_release, loop.time() + patience)
        except BaseException:
            await mine.release()
            raise
        self._held[upload_id] = lease
        if granted is None:
            self.watch(lease)
        return lease

    async def _take(
        self, lease: FallbackLease, deadline: float, request_release: bool, patient_until: float
    ) -> None:
        """Has the byte alone. Raises LockTimeout, LocksClosed, LocksUnavailable."""
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
                if request_release and loop.time() >= patient_until and self._give_up_holder(lease):
                    return
                if request_release and not asking:
                    asking = True
                    self._ranges.set_requested(lease.upload_id, on=True)
                await asyncio.sleep(min(pause, left))
                pause = min(pause * 2, _POLL)
        except OSError as problem:
            raise LocksUnavailable(f"the file system's locks: {problem}") from None
        finally:
            if asking:
                with suppress(OSError):
                    self._ranges.set_requested(lease.upload_id, on=False)

    def _try(self, lease: FallbackLease) -> bool:
        """Whether the byte of the current epoch is ours now."""
        upload_id = lease.upload_id
        epoch = self._epochs.read(upload_id)
        name = place_name(upload_id, epoch)
        if not self._ranges.take(name, alone=True):
            return False
        if self._epochs.read(upload_id) != epoch:
            # It ended before the byte was ours.
            self._ranges.let_go(name)
            return False
        self._begin(lease, epoch)
        return True

    def _begin(self, lease: FallbackLease, epoch: str) -> None:
        upload_id = lease.upload_id
        name = place_name(upload_id, epoch)
        lease.begin(
            name,
            ChangeFence(
                self._ranges.change_byte(name),
                self._epochs.is_current(upload_id, epoch),
                lease.lose,
            ),
        )

    def _give_up_holder(self, lease: FallbackLease) -> bool:
        """Whether the upload is ours now, in a new epoch. Only while Redis grants us the lock, in no change of the holder's."""
        upload_id, granted = lease.upload_id, lease.granted
        if granted is None:
            return False
        epoch = self._epochs.read(upload_id)
        change = self._ranges.change_byte(place_name(upload_id, epoch))
        try:
            change.take()
        except (BlockingIOError, PermissionError):
            return False
        try:
            if self._epochs.read(upload_id) != epoch or not granted.is_held():
                return False
            following = self._epochs.new()
            name = place_name(upload_id, following)
            # Before anybody can know of it.
            self._ranges.take(name, alone=True)
            try:
                self._epochs.write(upload_id, following)
            except OSError:
                self._ranges.let_go(name)
                raise
        finally:
            change.let_go()
        self._begin(lease, following)
        logs.event(
            logger,
            logging.WARNING,
            "lock taken over",
            upload=upload_id,
            reason="its holder did not release it, and Redis does not know of it any more",
        )
        return True

    def watch(self, lease: FallbackLease) -> None:
        """From now on the holder learns here that it is asked: Redis may not know that it holds the lock."""
        self._watched.add(lease)
        if self._watcher is None or self._watcher.done():
            self._watcher = keep_running(self._watch, "file locks")

    def _watch_all(self) -> None:
        """Redis does not answer, so nobody can ask by it."""
        for lease in self._held.values():
            self.watch(lease)

    async def _watch(self) -> None:
        """Passes on what others ask of those that Redis may have forgotten."""
        while self._watched:
            for lease in list(self._watched):
                with suppress(OSError):
                    if self._ranges.is_requested(lease.upload_id):
                        lease.request()
            await asyncio.sleep(_POLL)

    @asynccontextmanager
    async def try_acquire_many(
        self, upload_ids: Sequence[str]
    ) -> AsyncIterator[dict[str, FallbackLease]]:
        # Who wants many can wait for a Redis that is away.
        async with self._redis.try_acquire_many(upload_ids) as granted:
            leases: dict[str, FallbackLease] = {}
            try:
                for upload_id, each in granted.items():
                    with suppress(LockTimeout):
                        leases[upload_id] = await self._acquire(upload_id, 0.0, False, each)
                yield leases
            finally:
                # What Redis gave is let go of by the inner block, all at once.
                for lease in leases.values():
                    await self._let_go(lease)

    async def release(self, lease: FallbackLease) -> None:
        """Lets everything go that the lease stands on."""
        if await self._let_go(lease) and lease.granted is not None:
            await lease.granted.release()

    async def _let_go(self, lease: FallbackLease) -> bool:
        """Lets go of all but what Redis gave, the byte first: whoever is next needs it. False if that was done before."""
        if self._held.get(lease.upload_id) is not lease:
            return False
        del self._held[lease.upload_id]
        self._watched.discard(lease)
        byte = lease.end()
        with suppress(OSError):
            self._ranges.let_go(byte)
        await lease.mine.release()
        return True

    async def tidy(self, is_gone: Callable[[str], Awaitable[bool]]) -> int:
        """Puts uploads that are gone back into their first epoch, unless a holder may live that was given up in it."""
        removed = 0
        with suppress(OSError):
            removed += self._epochs.remove_remains()
            for upload_id in self._epochs.ids():
                if not await is_gone(upload_id):
                    continue
                with suppress(LockTimeout, LocksClosed):
                    mine = await self._memory.acquire(upload_id, timeout=0, request_release=False)
                    try:
                        removed += self._forget_epoch(upload_id)
                    finally:
                        await mine.release()
        return removed

    def _forget_epoch(self, upload_id: str) -> bool:
        """Whether that was possible: with the bytes of the current and of the first epoch. Others never count again."""
        epoch = self._epochs.read(upload_id)
        taken: list[str] = []
        try:
            for name in (place_name(upload_id, FIRST), place_name(upload_id, epoch)):
                if not self._ranges.take(name, alone=True):
                    return False
                taken.append(name)
            if self._epochs.read(upload_id) != epoch:
                return False
            self._epochs.forget(upload_id)
            return True
        finally:
            for name in taken:
                self._ranges.let_go(name)

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


class FallbackLease:
    """See `Lease`. granted: what Redis gave, if it could be asked; mine: this process' part."""

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
        self, locks: FallbackLocks, upload_id: str, mine: MemoryLease, granted: RedisLease | None
    ) -> None:
        self.upload_id = upload_id
        self.mine = mine
        self.granted = granted
        self._locks = locks
        self._loop = asyncio.get_running_loop()
        self._callback: Callable[[], None] | None = None
        self._byte = ""
        self._fence: ChangeFence | None = None
        self._is_held = False
        self._is_lost = False

    def begin(self, byte: str, fence: ChangeFence) -> None:
        """Hold the lock from now on, by the byte of this name."""
        self._byte = byte
        self._fence = fence
        self._is_held = True

    def end(self) -> str:
        """Hold it no more; the name of the byte, which is to be let go of."""
        self._is_held = False
        return self._byte

    def lose(self, reason: str) -> None:
        """Another holder has the upload. For any thread."""
        if self._is_held:
            self._is_held = False
            self._is_lost = True
            logs.event(
                logger, logging.WARNING, "changes refused", upload=self.upload_id, reason=reason
            )
            self._loop.call_soon_threadsafe(self.request)

    def request(self) -> None:
        """Its holder shall end."""
        if self._callback is not None:
            self._callback()

    def on_requested(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback
        self.mine.on_requested(callback)
        if self.granted is not None:
            self.granted.on_requested(None if callback is None else self._redis_wants)
        if self._is_lost:
            self.request()

    def _redis_wants(self) -> None:
        granted = self.granted
        if granted is None or granted.is_held() or granted.taken:
            self.request()
        else:
            # Redis' lock ran out, which nobody need have noticed: the byte is still ours.
            self._locks.watch(self)

    def is_held(self) -> bool:
        return self._is_held

    def fence(self) -> AbstractContextManager[None]:
        if not self._is_held or self._fence is None:
            raise LeaseLost("the lease is over")
        return self._fence

    async def release(self) -> None:
        await self._locks.release(self)
