"""The sweep jobs: one for uploads that are due, and one for the whole storage.

They share a lock, so that sweeps do not pile up: a job that finds a sweep running ends at once, as the next one comes anyway.
`tusd_py.uploads.sweep` removes uploads, and `tusd_py.service.connect` finds the process that may do so. After a sweep, a
delivery is queued for each upload that has events in the outbox and no job.
"""

from __future__ import annotations

import asyncio
import logging

from tusd_py import logs
from tusd_py.compat.directory import expire
from tusd_py.jobs.connection import connect
from tusd_py.jobs.delivery_queue import Deliveries, uploads_waiting
from tusd_py.maintenance.local import MaintenanceError, sweep_alone
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.due_index import DueIndex, SweepKind
from tusd_py.service.backends import connected_redis, store_to_read
from tusd_py.service.connect import open_maintenance
from tusd_py.uploads.sweep_guard import LONGEST_PAUSE_SECONDS
from tusd_workers import current
from tusd_workers.current import Instance

logger = logging.getLogger(__name__)


def sweep_due() -> None:
    """Sweep the uploads that are due; queued every `sweep_interval`."""
    _run("due")


def sweep_all() -> None:
    """Sweep the whole storage; queued every night."""
    _run("all")


def sweep_tuspyservers() -> None:
    """Sweep directories of tuspyserver's router, under the router's own locks, which no other job holds."""
    for directory in current.instance().settings.tuspyserver_dirs:
        report = expire(directory, longest_pause=LONGEST_PAUSE_SECONDS)
        logs.event(
            logger,
            logging.INFO,
            "sweep",
            directory=str(directory),
            seen=report.seen,
            expired=len(report.removed),
            in_use=report.in_use,
            failed=report.not_understood,
            held=report.held,
        )


def _run(kind: SweepKind) -> None:
    try:
        asyncio.run(_sweep(current.instance(), kind))
    except (MaintenanceError, RedisUnavailable) as problem:
        # Not a failed job: the next one does its work, and the status reports if none did for too long.
        logs.event(logger, logging.WARNING, "sweep failed", kind=kind, reason=str(problem))


async def _queue_deliveries(instance: Instance) -> None:
    """Queue a delivery for each upload that has events waiting and no job, because it was lost."""
    settings = instance.settings
    async with store_to_read(settings) as store:
        waiting = await uploads_waiting(store.outbox)
    with connect(instance.redis_url) as connection:
        found = Deliveries(connection, prefix=settings.redis_prefix).add_missing(waiting)
    if found:
        logs.event(logger, logging.INFO, "events found", uploads=found)


async def _sweep(instance: Instance, kind: SweepKind) -> None:
    """Sweep unless another sweep runs. Raises MaintenanceError, RedisUnavailable."""
    settings = instance.settings
    try:
        async with (
            connected_redis(settings, instance.redis_url) as redis,
            # A server cannot start on a directory that is locked here.
            open_maintenance(settings, may_open=False) as maintenance,
        ):
            report = await sweep_alone(maintenance, DueIndex(redis), kind)
    finally:
        await _queue_deliveries(instance)
    if report is None:
        logs.event(logger, logging.INFO, "sweep skipped", message="Another sweep is running")
        return
    logs.event(
        logger,
        logging.INFO,
        "sweep",
        kind=kind,
        seen=report.seen,
        expired=report.expired,
        finished=report.finished,
        remains=report.remains,
        failed=report.failed,
    )
