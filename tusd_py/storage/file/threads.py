"""Threads for blocking calls, such as disk operations, and a queue whose items they process in order."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, ParamSpec, TypeVar

_MAX_THREADS = 16

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A named pool of threads."""

    def __init__(self, name: str, most: int = _MAX_THREADS) -> None:
        self.executor = ThreadPoolExecutor(most, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread. A cancelled caller still waits for it to end."""
        loop = asyncio.get_running_loop()
        return await until_done(
            loop.run_in_executor(self.executor, lambda: function(*args, **kwargs))
        )

    def close(self) -> None:
        """Wait for the running calls; queued ones are cancelled."""
        self.executor.shutdown(wait=True, cancel_futures=True)


async def until_done(work: asyncio.Future[T]) -> T:
    """Wait for what a thread does, a cancelled caller as well: it must not release its lock while the thread still writes."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        with suppress(Exception):
            await asyncio.wait([work])
        raise


_MAX_ITEMS = 8
"""Items after which a thread turns to another queue: there may be more queues than threads."""


@dataclass(slots=True, eq=False)
class SerialQueue(Generic[T]):
    """Calls `work` for each added item, in order and in a thread, and then `release` in any case.

    After `work` has raised, or after `stop`, remaining items are only released. The methods are for the event loop.
    left: items that are not done yet.
    """

    threads: Executor
    work: Callable[[T], None]
    release: Callable[[T], None]
    left: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _items: deque[T] = field(default_factory=deque, init=False)
    _problem: Exception | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)
    # The waiter, and down to how many items it waits.
    _waiter: tuple[int, asyncio.Future[None]] | None = field(default=None, init=False)

    def add(self, item: T) -> None:
        with self._lock:
            self._items.append(item)
            self.left += 1
            is_first = self.left == 1
        if is_first:
            self.threads.submit(self._run)

    def check(self) -> None:
        """Raise the error that `work` raised, if any."""
        if self._problem is not None:
            raise self._problem

    async def wait_until_left(self, most: int) -> None:
        """Wait until at most so many items are left; for one waiter at a time. Raises what `work` raised."""
        await self._wait(most)
        self.check()

    async def stop(self) -> None:
        """Stop processing, and wait until all items are released."""
        self._stopped = True
        await self._wait(0)

    async def _wait(self, most: int) -> None:
        waiter = asyncio.get_running_loop().create_future()
        with self._lock:
            if self.left <= most:
                return
            self._waiter = most, waiter
        await waiter

    # In a thread

    def _run(self) -> None:
        """Process items until the queue is empty or another queue's turn has come."""
        for _ in range(_MAX_ITEMS):
            if not self._do_next():
                return
        self.threads.submit(self._run)

    def _do_next(self) -> bool:
        """Process one item; returns whether there are more."""
        item = self._items.popleft()
        try:
            if self._problem is None and not self._stopped:
                self.work(item)
        except Exception as problem:  # noqa: BLE001 - raised again by `check`
            self._problem = problem
        self.release(item)
        waiter = None
        with self._lock:
            self.left -= 1
            goes_on = self.left > 0
            if self._waiter is not None and self.left <= self._waiter[0]:
                (_, waiter), self._waiter = self._waiter, None
        if waiter is not None:
            waiter.get_loop().call_soon_threadsafe(_wake, waiter)
        return goes_on


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
