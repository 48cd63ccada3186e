"""Helpers for tests of leases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tusd_py.locks.base import Lease


def asked(lease: Lease) -> asyncio.Event:
    """Return an event that is set when the holder is asked to release."""
    event = asyncio.Event()
    lease.on_requested(event.set)
    return event


async def queued(task: asyncio.Task[Lease], seconds: float = 0.05) -> None:
    """Let a task that acquires a lock queue up, and check that it does not get the lock."""
    await asyncio.wait([task], timeout=seconds)
    assert not task.done()


async def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Poll until a condition holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        is_late = loop.time() > deadline
        if condition():
            return
        assert not is_late, f"waited {seconds} s for {what}"
        await asyncio.sleep(0.002)
