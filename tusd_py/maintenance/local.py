"""Sweeps and removals for operators and workers, in the process that holds the uploads' locks.

A single server keeps its locks in memory, so only that process may change its uploads: others send it requests over a unix
socket (`remote.py`). If the locks are in Redis, or no server runs, any process does the work itself. Both implement
`Maintenance`. Not for: when to sweep (`service/regular_sweeps.py`, `tusd_workers`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from functools import partial
from typing import Protocol

from tusd_py import logs
from tusd_py.background import cancel, keep_running
from tusd_py.protocol.errors import ProtocolError
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.due_index import DueIndex, SweepKind
from tusd_py.storage.base import (
    RecordUnreadable,
    StorageError,
    UploadGone,
    UploadNotFound,
)
from tusd_py.uploads.service import Uploads
from tusd_py.uploads.sweep import PauseFactor, Sweep, SweepReport, SweepStopped, Tell
from tusd_py.uploads.sweep_guard import Clock, begins_hold, hold_reason, is_far, is_most, steady

logger = logging.getLogger(__name__)

_LEASE_SECONDS = 20.0
"""Time after which the lock of a sweep whose process died expires."""


class MaintenanceError(Exception):
    """The operation failed; the text says why."""


class Maintenance(Protocol):
    """Maintenance operations on an instance."""

    async def sweep(
        self, kind: SweepKind, *, dry_run: bool, tell: Tell | None, force: bool = False
    ) -> SweepReport:
        """Sweep what is due, or the whole storage.

        Args:
            kind: "due" or "all".
            dry_run: Change nothing, count only.
            tell: Awaited with each upload that is due.
            force: Sweep even if `sweep_guard.py` would hold the sweep; a held sweep removes nothing, and reports that.

        Raises:
            MaintenanceError: The sweep failed.
            RedisUnavailable: The index cannot be read.
        """

    async def remove(self, upload_id: str, *, unreadable: bool = False) -> str | None:
        """Remove an upload. Returns None, or why it was not removed. Raises MaintenanceError.

        unreadable: remove it also if its record cannot be read.
        """


class LocalMaintenance:
    """`Maintenance` in this process, whose locks exclude all servers of the uploads.

    Sweeps are recorded in `due_index`, which is None without a Redis. pause_factor: see `PauseFactor`. directory: the id of
    what is maintained, if it has one.
    """

    def __init__(
        self,
        uploads: Uploads,
        due_index: DueIndex | None,
        *,
        pause_factor: PauseFactor | None = None,
        directory: str = "",
    ) -> None:
        self.directory = directory
        self._uploads = uploads
        self._due_index = due_index
        self._pause_factor = pause_factor

    async def sweep(
        self,
        kind: SweepKind,
        *,
        dry_run: bool = False,
        tell: Tell | None = None,
        force: bool = False,
    ) -> SweepReport:
        began, now = time.time(), steady(self._uploads.expiry.now)
        try:
            report = None if dry_run or force else await self._held(kind, now)
            if report is None:
                report = await self._sweep(kind, now, dry_run=dry_run, tell=tell)
                if dry_run and not force:
                    times = await self._uploads.store.sweep_marks.read()
                    reason = hold_reason(times, seen=report.seen, due=report.expired, now=now())
                    report.held_because = reason or ""
                elif not dry_run and not self._uploads.closing:
                    await self._uploads.store.sweep_marks.record_end(now())
            else:
                # What a crash interrupted is finished all the same.
                rest = await self._sweep("all", now, dry_run=False, tell=None, removes=False)
                report.finished, report.failed = rest.finished, rest.failed
        except (StorageError, SweepStopped) as problem:
            raise MaintenanceError(str(problem)) from problem
        if self._due_index is not None and not dry_run:
            try:
                await self._due_index.record_sweep(report.record(kind, began))
            except RedisUnavailable as problem:
                logger.debug("a sweep could not be recorded: %s", problem)
        return report

    async def _held(self, kind: SweepKind, clock: Clock) -> SweepReport | None:
        """Log and return a report if the sweep is held; None if it may run."""
        uploads, due_index = self._uploads, self._due_index
        marks = uploads.store.sweep_marks
        times = await marks.read()
        if kind == "due" and due_index is not None and not is_far(times.ended_at, clock()):
            counts = await due_index.counts(clock())
            if counts.is_whole and not is_most(counts.known, counts.due):
                return None
        # Counted in the storage: the index may list uploads that are not due any more, and lacks those that never are.
        counting = Sweep(
            uploads, dry_run=True, pause_factor=self._pause_factor, quiet=True, now=clock
        )
        report = await counting.check_all()
        now = clock()
        reason = hold_reason(times, seen=report.seen, due=report.expired, now=now)
        if reason is None:
            return None
        if begins_hold(times, now):
            await marks.record_hold(now)
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

    async def _sweep(
        self,
        kind: SweepKind,
        now: Clock,
        *,
        dry_run: bool,
        tell: Tell | None,
        removes: bool = True,
    ) -> SweepReport:
        uploads = self._uploads

        if not dry_run and removes:
            await uploads.recover_removals()
            await uploads.drop_abandoned_events_at_times(always=kind == "all")
        running = Sweep(
            uploads,
            self._due_index,
            dry_run=dry_run,
            removes=removes,
            tell=tell,
            pause_factor=self._pause_factor,
            now=now,
        )
        return await (running.check_due() if kind == "due" else running.check_all())

    async def remove(self, upload_id: str, *, unreadable: bool = False) -> str | None:
        try:
            removed = await self._uploads.discard(upload_id, unreadable=unreadable)
        except UploadGone:
            return "it is gone already"
        except UploadNotFound:
            return "there is no such upload"
        except RecordUnreadable as problem:
            return (
                f"its record cannot be read: {problem}; with --unreadable it is removed all the same, with the bytes under "
                "its id and without an event"
            )
        except (StorageError, ProtocolError) as problem:
            raise MaintenanceError(str(problem)) from problem
        return None if removed else "a client is writing to it; try again when it has ended"


async def sweep_alone(
    maintenance: Maintenance, due_index: DueIndex, kind: SweepKind
) -> SweepReport | None:
    """Sweep, unless another sweep is running; None then.

    Two sweeps at a time would be harmless, but jobs that arrive faster than they finish would pile up. Raises MaintenanceError,
    RedisUnavailable.
    """
    token = secrets.token_hex(8)
    if not await due_index.lock_sweep(token, lease=_LEASE_SECONDS):
        return None
    renewal = keep_running(partial(_renew, due_index, token), "sweep lease")
    try:
        return await maintenance.sweep(kind, dry_run=False, tell=None)
    finally:
        await cancel(renewal)
        with suppress(RedisUnavailable):
            await due_index.unlock_sweep(token)


async def _renew(due_index: DueIndex, token: str) -> None:
    """Renew the lock. If it is lost while Redis is unavailable, the worst result is a second sweep."""
    while True:
        await asyncio.sleep(_LEASE_SECONDS / 4)
        with suppress(RedisUnavailable):
            await due_index.renew_sweep(token, lease=_LEASE_SECONDS)
