"""The jobs that give up what was abandoned: a sweep of what is due, and one of the whole storage.

They hold one lock among them, so that jobs that come faster than they are done do not pile up: one that finds a sweep running
ends at once, as the next one comes anyhow. What is removed, and how, is said by `tusd_py.sweep`; who may do it, by
`tusd_py.reach`.
"""

from __future__ import annotations

import asyncio
import logging

from tusd_py import logs, reach
from tusd_py.state import State
from tusd_py.state.registry import Registry, SweepKind
from tusd_py.upkeep import sweep_alone
from tusd_workers import current
from tusd_workers.current import Instance

logger = logging.getLogger(__name__)


def sweep_due() -> None:
    """The job every ten minutes. Raises UpkeepFailed, StateUnavailable."""
    _run("due")


def sweep_all() -> None:
    """The job every night. Raises UpkeepFailed, StateUnavailable."""
    _run("all")


def _run(kind: SweepKind) -> None:
    asyncio.run(_sweep(current.instance(), kind))


async def _sweep(instance: Instance, kind: SweepKind) -> None:
    settings = instance.settings
    state = State(instance.redis_url, prefix=settings.redis_prefix, timeout=settings.redis_timeout)
    await state.start()
    try:
        # A directory that is taken here is one on which a server cannot start.
        async with reach.upkeep(settings, may_take=False) as upkeep:
            report = await sweep_alone(upkeep, Registry(state), kind)
    finally:
        await state.stop()
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
