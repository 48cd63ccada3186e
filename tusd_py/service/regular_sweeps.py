"""Sweep from within a server: once at its start, and later whenever no worker does."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from tusd_py import logs
from tusd_py.background import record_failure
from tusd_py.maintenance.local import LocalMaintenance, MaintenanceError, sweep_alone
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.due_index import SweepKind
from tusd_py.service.duty_cycle import DutyCycle
from tusd_py.service.instance import Instance
from tusd_py.uploads.sweep import SweepReport

logger = logging.getLogger(__name__)

_OVERDUE_FACTOR = 1.5
"""Multiple of the sweep interval after which no worker or other server is assumed to sweep."""
_FULL_SWEEP_OVERDUE_SECONDS = 25 * 3600.0
"""Time after which the whole storage should have been swept again."""
_MARK_INTERVALS, _LEAST_MARK_SECONDS = 3, 60.0
"""How long it is remembered that a server needs no worker, in sweep intervals, and at least."""


class RegularSweeps:
    """Sweeps one instance at intervals, until `run` is cancelled.

    needs_workers: whether workers are meant to run beside it, which is recorded for `tusd-py status`.
    """

    def __init__(self, instance: Instance, *, needs_workers: bool) -> None:
        self._instance = instance
        self._needs_workers = needs_workers
        self._swept_at = 0.0
        self._cycle = DutyCycle(instance.counters)

    async def run(self) -> None:
        """Sweep the whole storage, then what is due whenever no other process has swept for too long."""
        interval = self._instance.settings.sweep_interval
        kind: SweepKind | None = "all"
        while True:
            try:
                await self._record_need()
                if kind is not None:
                    _log(await self.sweep(kind))
                await asyncio.sleep(interval)
                kind = await self._missing_sweep()
            except (MaintenanceError, RedisUnavailable) as problem:
                logger.warning("the sweep failed and will be tried again: %s", problem)
                await asyncio.sleep(interval)
                kind = "all"
            except Exception as problem:  # noqa: BLE001 - the edge of a task; not started again at once, as it may be long
                record_failure("sweep", problem, "the sweep failed and will be tried again")
                await asyncio.sleep(interval)
                kind = "all"

    async def sweep(self, kind: SweepKind) -> SweepReport | None:
        """Sweep once; None if another process is sweeping. Raises MaintenanceError, RedisUnavailable."""
        instance = self._instance
        due_index = instance.due_index
        maintenance = LocalMaintenance(
            instance.uploads, due_index, pause_factor=self._cycle.pause_factor
        )
        if due_index is not None and instance.settings.redis_url is not None:
            report = await sweep_alone(maintenance, due_index, kind)
        else:
            # No other process can sweep: what a crash left behind is recovered at once.
            report = await maintenance.sweep(kind)
        self._swept_at = time.time()
        await instance.publisher.scan()
        return report

    async def _record_need(self) -> None:
        instance = self._instance
        if instance.due_index is not None:
            lasts = max(_LEAST_MARK_SECONDS, _MARK_INTERVALS * instance.settings.sweep_interval)
            with suppress(RedisUnavailable):
                await instance.due_index.mark_without_workers(
                    seconds=0.0 if self._needs_workers else lasts
                )

    async def _missing_sweep(self) -> SweepKind | None:
        """The kind of sweep that is overdue; None if workers or other servers sweep."""
        instance = self._instance
        if instance.due_index is None:
            return "all"
        now, overdue = time.time(), _OVERDUE_FACTOR * instance.settings.sweep_interval
        records = await instance.due_index.sweeps()
        ended = {each.kind: each.ended for each in records if not each.is_ahead(now)}
        if now - ended.get("all", 0.0) > _FULL_SWEEP_OVERDUE_SECONDS:
            return "all"
        # There is one of the whole storage.
        last = max(ended.values())
        return None if last > self._swept_at and now - last < overdue else "due"


def _log(report: SweepReport | None) -> None:
    """Log what a sweep did, if it did anything."""
    if report is not None and (report.expired or report.finished or report.remains):
        logs.event(
            logger,
            logging.INFO,
            "sweep",
            seen=report.seen,
            expired=report.expired,
            finished=report.finished,
            remains=report.remains,
        )
