"""Things that are done one after the other, in threads, while more of them come.

Not for: what they are.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

_TURN = 8
"""Things after which a thread takes another chain: there may be more of them than threads."""

T = TypeVar("T")


class SerialQueue(Generic[T]):
    """Does `work` to each thing that is added, in a thread, in their order, and then `release`, whatever became of it.

    After `work` has raised, or after `stop`, the things that are left are released only. Its methods are for the event loop.
    """

    __slots__ = (
        "_left",
        "_lock",
        "_problem",
        "_release",
        "_stopped",
        "_things",
        "_threads",
        "_waiter",
        "_work",
    )

    def __init__(
        self, threads: Executor, work: Callable[[T], None], release: Callable[[T], None]
    ) -> None:
        self._threads = threads
        self._work = work
        self._release = release
        self._lock = threading.Lock()
        self._things: deque[T] = deque()
        self._left = 0
        self._problem: Exception | None = None
        self._stopped = False
        # Who waits, and until how many are left.
        self._waiter: tuple[int, asyncio.Future[None]] | None = None

    @property
    def left(self) -> int:
        """How many things are not done yet."""
        return self._left

    def add(self, thing: T) -> None:
        """One more thing, behind the others."""
        with self._lock:
            self._things.append(thing)
            self._left += 1
            is_first = self._left == 1
        if is_first:
            self._threads.submit(self._run)

    def check(self) -> None:
        """Raises what `work` has raised, if it has."""
        if self._problem is not None:
            raise self._problem

    async def left_are(self, most: int) -> None:
        """Returns when no more than so many are left. Raises what `work` has raised. For one at a time."""
        await self._wait(most)
        self.check()

    async def stop(self) -> None:
        """Returns when nothing is being done any more, and everything was released."""
        self._stopped = True
        await self._wait(0)

    async def _wait(self, most: int) -> None:
        waiter = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._left <= most:
                return
            self._waiter = most, waiter
        await waiter

    # In a thread

    def _run(self) -> None:
        """Does what there is to be done, for as long as it is this one's turn."""
        for _ in range(_TURN):
            if not self._do_next():
                return
        self._threads.submit(self._run)

    def _do_next(self) -> bool:
        """Does one thing; returns whether there are more."""
        thing = self._things.popleft()
        try:
            if self._problem is None and not self._stopped:
                self._work(thing)
        except Exception as problem:  # noqa: BLE001 - raised again by `check`
            self._problem = problem
        self._release(thing)
        waiter = None
        with self._lock:
            self._left -= 1
            goes_on = self._left > 0
            if self._waiter is not None and self._left <= self._waiter[0]:
                (_, waiter), self._waiter = self._waiter, None
        if waiter is not None:
            waiter.get_loop().call_soon_threadsafe(_wake, waiter)
        return goes_on


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
