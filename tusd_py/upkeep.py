"""What operators and workers want done to uploads as a whole: a sweep, removals; done by whoever holds the uploads' locks.

A single server keeps its locks in its memory, so nobody else may touch its uploads: it is asked, over a unix socket beside its
state (`control.py`). Where locks are in Redis, or no server runs, whoever wants something does it itself. Both look the same
here. Not for: when a sweep is run, which is said by the workers.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from tusd_py.background import keep_running
from tusd_py.protocol.errors import ProtocolError
from tusd_py.state import StateUnavailable
from tusd_py.state.registry import Registry, SweepKind
from tusd_py.storage.base import StorageError, Upload, UploadGone, UploadNotFound
from tusd_py.sweep import Rest, SweepReport, SweepStopped, sweep, sweep_due
from tusd_py.uploads import Uploads

_LEASE = 20.0
"""Seconds after which a sweep whose process died is no longer in the way of the next."""


class UpkeepFailed(Exception):
    """It could not be done; the text says why."""


@dataclass(frozen=True, slots=True)
class Expired:
    """An upload that a sweep removes. bytes: how many it has; since: when it expired, seconds since the epoch."""

    upload: str
    bytes: int
    since: float


Tell = Callable[[Expired], Awaitable[None]]


class Upkeep(Protocol):
    """What can be wanted."""

    async def sweep(self, kind: SweepKind, *, dry_run: bool, tell: Tell | None) -> SweepReport:
        """Sweeps what is due, or the whole storage. tell: awaited with each upload that goes, or would.

        Raises UpkeepFailed, StateUnavailable.
        """

    async def remove(self, upload_id: str) -> str | None:
        """Removes an upload; None, or why it is still or no longer there. Raises UpkeepFailed."""


class OwnUpkeep:
    """It is done in this process, whose locks hold for all that serve the uploads. See `Upkeep`. rest: see `Rest`."""

    def __init__(
        self, uploads: Uploads, registry: Registry | None, *, rest: Rest | None = None
    ) -> None:
        self._uploads = uploads
        self._registry = registry
        self._rest = rest

    async def sweep(
        self, kind: SweepKind, *, dry_run: bool = False, tell: Tell | None = None
    ) -> SweepReport:
        uploads, registry = self._uploads, self._registry

        async def found(upload: Upload) -> None:
            if tell is not None:
                since = uploads.due_at(upload) or upload.changed_at
                await tell(Expired(upload.id, upload.offset, since))

        try:
            if not dry_run:
                await uploads.recover_removals()
            if kind == "due" and registry is not None:
                return await sweep_due(
                    uploads, registry, dry_run=dry_run, found=found, rest=self._rest
                )
            return await sweep(
                uploads, registry=registry, dry_run=dry_run, found=found, rest=self._rest
            )
        except (StorageError, SweepStopped) as problem:
            raise UpkeepFailed(str(problem)) from problem

    async def remove(self, upload_id: str) -> str | None:
        try:
            removed = await self._uploads.discard(upload_id)
        except UploadGone:
            return "it is gone already"
        except UploadNotFound:
            return "there is no such upload"
        except (StorageError, ProtocolError) as problem:
            raise UpkeepFailed(str(problem)) from problem
        return None if removed else "a client is writing to it; try again when it has ended"


async def sweep_alone(upkeep: Upkeep, registry: Registry, kind: SweepKind) -> SweepReport | None:
    """Sweeps unless another sweep is running, and remembers what it did. None if another one is.

    Two sweeps at a time would do no harm, but jobs that come faster than they are done would pile up. Raises UpkeepFailed,
    StateUnavailable.
    """
    token = secrets.token_hex(8)
    if not await registry.lock_sweep(token, lease=_LEASE):
        return None
    keeping = keep_running(partial(_keep, registry, token), "sweep lease")
    try:
        began = time.time()
        report = await upkeep.sweep(kind, dry_run=False, tell=None)
        await registry.record_sweep(report.record(kind, began))
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        with suppress(StateUnavailable):
            await registry.unlock_sweep(token)
    return report


async def _keep(registry: Registry, token: str) -> None:
    """Renews the lock. Should it be lost while Redis is away, the worst is a second sweep."""
    while True:
        await asyncio.sleep(_LEASE / 4)
        with suppress(StateUnavailable):
            await registry.renew_sweep(token, lease=_LEASE)
