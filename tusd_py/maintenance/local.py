"""What operators and workers want done to uploads as a whole: a sweep, removals; done by whoever holds the uploads' locks.

A single server keeps its locks in its memory, so nobody else may touch its uploads: it is asked, over a unix socket beside its
state (`control.py`). Where locks are in Redis, or no server runs, whoever wants something does it itself. Both look the same
here. Not for: when a sweep is run, which is said by the workers.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from tusd_py import logs
from tusd_py.background import keep_running
from tusd_py.protocol.errors import ProtocolError
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.due_index import DueIndex, SweepKind
from tusd_py.storage.base import (
    KeepsSweepMarks,
    StorageError,
    Upload,
    UploadGone,
    UploadNotFound,
)
from tusd_py.storage.sweep_marks import SweepMarks
from tusd_py.uploads.service import Uploads
from tusd_py.uploads.sweep import Rest, SweepReport, SweepStopped, sweep, sweep_due
from tusd_py.uploads.sweep_guard import hold_reason, is_far, is_most

logger = logging.getLogger(__name__)

_LEASE = 20.0
"""Seconds after which a sweep whose process died is no longer in the way of the next."""


class MaintenanceError(Exception):
    """It could not be done; the text says why."""


@dataclass(frozen=True, slots=True)
class Expired:
    """An upload that a sweep removes. bytes: how many it has; since: when it expired, seconds since the epoch."""

    upload: str
    bytes: int
    since: float


Tell = Callable[[Expired], Awaitable[None]]


class Maintenance(Protocol):
    """What can be wanted."""

    async def sweep(
        self, kind: SweepKind, *, dry_run: bool, tell: Tell | None, force: bool = False
    ) -> SweepReport:
        """Sweeps what is due, or the whole storage. tell: awaited with each upload that goes, or would.

        force: also what a sweep is held for (`sweep_guard.py`); else nothing is done then, and the report says so.
        Raises MaintenanceError, RedisUnavailable.
        """

    async def remove(self, upload_id: str) -> str | None:
        """Removes an upload; None, or why it is still or no longer there. Raises MaintenanceError."""


class LocalMaintenance:
    """It is done in this process, whose locks hold for all that serve the uploads. See `Maintenance`. rest: see `Rest`."""

    def __init__(
        self, uploads: Uploads, registry: DueIndex | None, *, rest: Rest | None = None
    ) -> None:
        self._uploads = uploads
        self._registry = registry
        self._rest = rest

    async def sweep(
        self,
        kind: SweepKind,
        *,
        dry_run: bool = False,
        tell: Tell | None = None,
        force: bool = False,
    ) -> SweepReport:
        try:
            if not dry_run and not force:
                held = await self._held(kind)
                if held is not None:
                    return held
            report = await self._sweep(kind, dry_run=dry_run, tell=tell)
        except (StorageError, SweepStopped) as problem:
            raise MaintenanceError(str(problem)) from problem
        if not dry_run and self._marks is not None and not self._uploads.closing:
            self._marks.record_end(self._uploads.now())
        return report

    @property
    def _marks(self) -> SweepMarks | None:
        store = self._uploads.store
        return store.sweep_marks if isinstance(store, KeepsSweepMarks) else None

    async def _held(self, kind: SweepKind) -> SweepReport | None:
        """What a sweep is held for, said in the log; None if it may go on."""
        uploads, registry, marks = self._uploads, self._registry, self._marks
        if marks is None:
            return None
        if kind == "due" and registry is not None and not is_far(marks.last(), uploads.now()):
            counts = await registry.counts(uploads.now())
            if counts.is_whole and not is_most(counts.known, counts.due):
                return None
        # The index may know uploads as due that are not, and does not know those that never are.
        report = await sweep(uploads, dry_run=True, rest=self._rest)
        now = uploads.now()
        reason = hold_reason(marks, seen=report.seen, due=report.expired, now=now)
        if reason is None:
            return None
        logs.event(
            logger,
            logging.WARNING,
            "sweep held",
            message=f"The sweep removes nothing now: {reason}. See whether the clock and the settings are right; if so, "
            "tusd-py sweep --force removes them",
            due=report.expired,
            seen=report.seen,
            reason=reason,
        )
        return SweepReport(seen=report.seen, held=report.expired, held_because=reason)

    async def _sweep(self, kind: SweepKind, *, dry_run: bool, tell: Tell | None) -> SweepReport:
        uploads, registry = self._uploads, self._registry

        async def found(upload: Upload) -> None:
            if tell is not None:
                since = uploads.due_at(upload) or upload.changed_at
                await tell(Expired(upload.id, upload.offset, since))

        if not dry_run:
            await uploads.recover_removals()
        if kind == "due" and registry is not None:
            return await sweep_due(uploads, registry, dry_run=dry_run, found=found, rest=self._rest)
        return await sweep(
            uploads, registry=registry, dry_run=dry_run, found=found, rest=self._rest
        )

    async def remove(self, upload_id: str) -> str | None:
        try:
            removed = await self._uploads.discard(upload_id)
        except UploadGone:
            return "it is gone already"
        except UploadNotFound:
            return "there is no such upload"
        except (StorageError, ProtocolError) as problem:
            raise MaintenanceError(str(problem)) from problem
        return None if removed else "a client is writing to it; try again when it has ended"


async def sweep_alone(
    maintenance: Maintenance, registry: DueIndex, kind: SweepKind
) -> SweepReport | None:
    """Sweeps unless another sweep is running, and remembers what it did. None if another one is.

    Two sweeps at a time would do no harm, but jobs that come faster than they are done would pile up. Raises MaintenanceError,
    RedisUnavailable.
    """
    token = secrets.token_hex(8)
    if not await registry.lock_sweep(token, lease=_LEASE):
        return None
    keeping = keep_running(partial(_keep, registry, token), "sweep lease")
    try:
        began = time.time()
        report = await maintenance.sweep(kind, dry_run=False, tell=None)
        await registry.record_sweep(report.record(kind, began))
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        with suppress(RedisUnavailable):
            await registry.unlock_sweep(token)
    return report


async def _keep(registry: DueIndex, token: str) -> None:
    """Renews the lock. Should it be lost while Redis is away, the worst is a second sweep."""
    while True:
        await asyncio.sleep(_LEASE / 4)
        with suppress(RedisUnavailable):
            await registry.renew_sweep(token, lease=_LEASE)
