"""Background tasks whose failures are logged and counted; long-running ones are restarted.

`asyncio` reports the exception of a task only to code that awaits it, so a background task would fail silently. All tasks that
are not awaited are created here. Not for: threads and processes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine

from tusd_py import logs

logger = logging.getLogger(__name__)

failures: Counter[str] = Counter()
"""Number of failures of tasks of this process, by name; for the metrics."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 30.0
"""Pause before a restart: it starts with the first and doubles up to the longest."""
_LASTED_SECONDS = 60.0
"""A task that ran for longer than this is considered healthy: its pause is reset."""

Work = Coroutine[None, None, None]


def keep_running(start: Callable[[], Work], name: str) -> asyncio.Task[None]:
    """Run `start()` as a task that is restarted whenever it raises, until it returns or the task is cancelled.

    name: for the log and the metrics.
    """
    return asyncio.get_running_loop().create_task(_restarted(start, name), name=name)


def spawn(
    work: Work, name: str, tasks: set[asyncio.Task[None]] | None = None
) -> asyncio.Task[None]:
    """Run `work` once as a task.

    tasks: keeps a reference while the task runs, as the event loop has only weak references to tasks.
    """
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_report)
    if tasks is not None:
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    return task


async def cancel(*tasks: asyncio.Task[None] | None) -> None:
    """Cancel tasks, and wait until they have ended; None is one that never began."""
    begun = [task for task in tasks if task is not None]
    for task in begun:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most so long; return whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


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
    """Report a failure; a callback, as it is cheaper than a wrapping coroutine and every creation spawns tasks."""
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
