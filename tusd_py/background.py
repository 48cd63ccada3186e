"""Tasks in the background: each one that fails is logged and counted, and one that has to last is started again.

`asyncio` keeps the exception of a task until somebody asks for it, which for a background task is never: it would end in
silence. Nothing else in this tree calls `create_task` for work that nobody awaits. Not for: threads and processes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine

from tusd_py import logs

logger = logging.getLogger(__name__)

failures: Counter[str] = Counter()
"""How often tasks of this process have failed, by name; for the metrics."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 30.0
"""Pause before a task is started again, at first and in the end."""
_LASTED_SECONDS = 60.0
"""A task that ran for so long had been well: the pauses begin anew."""

Work = Coroutine[None, None, None]


def keep_running(start: Callable[[], Work], name: str) -> asyncio.Task[None]:
    """Run `start()` as a task that is started again whenever it raises, until it returns or the task is cancelled.

    name: of the task, for the log and the metrics.
    """
    return asyncio.get_running_loop().create_task(_restarted(start, name), name=name)


def spawn(
    work: Work, name: str, tasks: set[asyncio.Task[None]] | None = None
) -> asyncio.Task[None]:
    """Run `work` once as a task.

    tasks: holds the task while it runs, as the event loop alone does not keep it from the garbage collector.
    """
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_report)
    if tasks is not None:
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    return task


async def _restarted(start: Callable[[], Work], name: str) -> None:
    loop = asyncio.get_running_loop()
    pause = _FIRST_PAUSE_SECONDS
    while True:
        began = loop.time()
        try:
            await start()
            return
        except Exception as problem:  # noqa: BLE001 - the edge of a task
            if loop.time() - began > _LASTED_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            record_failure(name, problem, f"{name} failed and is started again")
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _report(task: asyncio.Task[None]) -> None:
    """A callback and not a coroutine around the work: commands to Redis are spawned for every creation."""
    problem = None if task.cancelled() else task.exception()
    if problem is not None:
        record_failure(task.get_name(), problem, f"{task.get_name()} failed")


def record_failure(name: str, problem: BaseException, message: str) -> None:
    """Log and count a failure of the task `name`."""
    failures[name] += 1
    logs.event(
        logger,
        logging.ERROR,
        "background task failed",
        message=message,
        task=name,
        reason=str(problem) or type(problem).__name__,
        exc_info=problem,
    )
