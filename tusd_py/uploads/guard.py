"""The guard of an upload: who changes it has checked access, holds its lock, and has loaded it under that lock.

    async with guard.exclusive(upload_id, request, Action.APPEND) as held:
        ...                    # held.upload, held.lease

An operation of the server itself, such as a sweep, takes the lock only if it is free, and leaves an upload that is in use:

    async with guard.if_free(upload_id) as lease:
        if lease is not None:
            ...
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType

from tusd_py.auth.principal import Action
from tusd_py.events.hooks import Hooks
from tusd_py.events.model import RequestView
from tusd_py.locks.base import (
    Fence,
    Lease,
    LeaseLost,
    Locks,
    LocksClosed,
    LocksUnavailable,
    LockTimeout,
)
from tusd_py.protocol import errors
from tusd_py.storage.base import Upload
from tusd_py.telemetry.counters import Counters
from tusd_py.uploads.access import Access
from tusd_py.uploads.failures import translated

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Held:
    """An upload whose lock is held, as it was loaded under the lock."""

    upload: Upload
    lease: Lease

    @property
    def fence(self) -> Fence:
        """Every change of the upload is made within it; see `Fence`."""
        return self.lease.fence


@dataclass(slots=True, eq=False, repr=False)
class Guard:
    """Guards the uploads of one store. acquire_timeout: seconds to wait for a lock. closing: the server is shutting down."""

    locks: Locks
    access: Access
    hooks: Hooks
    counters: Counters
    acquire_timeout: float
    closing: bool = False

    # Requests

    def admit(self) -> None:
        """Raise a 503 while the server is shutting down."""
        if self.closing:
            raise errors.shutting_down()

    async def admit_change(self) -> None:
        """`admit`, and a 503 while hooks are far behind: what they are still to be told must not fill the memory."""
        self.admit()
        if not self.hooks.has_room and not await self.hooks.wait_for_room():
            raise errors.unavailable()

    async def admit_creation(self) -> None:
        """`admit_change`, and a 503 while no locks are granted: nobody could add bytes to a new upload."""
        if not self.locks.can_grant():
            raise errors.unavailable()
        await self.admit_change()

    def exclusive(self, upload_id: str, request: RequestView, action: Action) -> _Exclusive:
        """`async with`: check access, lock the upload after ending a request that is writing to it, load it.

        Raises the response to what the store or the lock raises, also within the block.
        """
        return _Exclusive(self, upload_id, request, action)

    def try_acquire_local(self, upload_id: str, request: RequestView) -> Lease | None:
        """Acquire a free lock that lives in this process, if neither tokens nor hooks restrict access."""
        if not self.access.is_open_to(request):
            return None
        lease = self.locks.try_acquire(upload_id)
        if lease is not None:
            self.counters.lock_waits.observe(0.0)
        return lease

    # Locks alone

    @asynccontextmanager
    async def if_free(self, upload_id: str) -> AsyncIterator[Lease | None]:
        """`async with`: the lease if the lock is free, else None. The block ends early if the lock is lost."""
        lease = None
        with suppress(LockTimeout):
            lease = await self.acquire(upload_id, request_release=False, timeout=0)
        if lease is None:
            yield None
            return
        async with lease:
            with suppress(LeaseLost):
                yield lease

    async def acquire(
        self, upload_id: str, *, request_release: bool = True, timeout: float | None = None
    ) -> Lease:
        """Acquire the upload's lock. Raises a 423 or 503; without `request_release`, LockTimeout instead of the 423."""
        began = time.monotonic()
        limit = self.acquire_timeout if timeout is None else timeout
        try:
            lease = await self.locks.acquire(
                upload_id, timeout=limit, request_release=request_release
            )
        except LockTimeout:
            if not request_release:
                raise
            self.counters.lock_timeouts += 1
            raise errors.locked() from None
        except LocksClosed:
            raise errors.shutting_down() from None
        except LocksUnavailable as problem:
            logger.warning("no lock for %s: %s", upload_id, problem)
            raise errors.unavailable() from None
        self.counters.lock_waits.observe(time.monotonic() - began)
        return lease


@dataclass(slots=True, eq=False)
class _Exclusive:
    """See `Guard.exclusive`. A class, because every request uses one and a generator takes longer."""

    guard: Guard
    upload_id: str
    request: RequestView
    action: Action
    lease: Lease = field(init=False)

    async def __aenter__(self) -> Held:
        guard, access = self.guard, self.guard.access
        with translated:
            await access.check_early(self.upload_id, self.request, self.action)
            self.lease = await guard.acquire(self.upload_id)
            try:
                upload = await access.load_checked(self.upload_id, self.request, self.action)
            except BaseException:
                await self.lease.release()
                raise
        return Held(upload, self.lease)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.lease.release()
        translated.__exit__(kind, problem, trace)
