"""One rule for every small file operation of a store: inline while the disk is quick, in a thread while it is slow.

An operation on the page cache takes microseconds, and a way through a thread costs more than that. But a disk may stand still
(a full queue, a frozen snapshot, a server of files that is away), and an operation that waits for it in the event loop holds up
every client. So an operation runs inline only if another one was quick a moment ago. Otherwise a helper thread does it, and the
event loop waits for that for as long as it would for a quick disk; then it goes on with other things. Once an operation was
slow, the following ones go to threads at once, until the disk has had time to recover.

What remains: the disk may stand still within that moment. Then one operation blocks the event loop. A moment is so short that
this needs hundreds of operations a second, and so long that helpers cost no more than a fiftieth of a processor.

Reads and changes are told apart: a file system that takes no changes mostly still answers what is in memory. Not for: syncs,
joins and removals, which are always slow and always run in threads.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, ParamSpec, TypeVar, cast

from tusd_py.storage.file.disk_waits import WaitClock
from tusd_py.storage.file.executor import Threads

SLOW_SECONDS = 0.02
"""An operation on the page cache takes far less; one that takes longer waits for the disk."""
SLOW_PERIOD_SECONDS = 1.0
"""How long operations go through threads after a slow one has ended, at most."""
_SLOW_FACTOR = 5
"""How much longer than the slow one took."""
_CHANGE_MOMENT_SECONDS = 0.001
_WRITE_MOMENT_SECONDS = 0.005
"""For bytes of bodies, which have to be copied for a helper."""
_READ_MOMENT_SECONDS = 0.02
"""Reads of what is in memory rarely wait, and HEAD has little else to do."""
_LOOK_SECONDS = 0.002
"""How old a count of what a thread lacked a processor may be: as much of that is overlooked at most."""

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """The file operations of one store. threads: for changes while the disk is slow.

    Its methods are for the event loop, but for `observe_change`.
    """

    def __init__(self, threads: Threads) -> None:
        # Reads are not to queue behind changes that wait for a disk that takes none.
        self._read_threads = Threads("tusd-read")
        self._reads = _Lane("tusd-read-helper", self._read_threads)
        self._changes = _Lane("tusd-change-helper", threads)

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation that changes nothing: open, read, stat. Returns and raises what it does."""
        lane = self._reads
        if (began := time.monotonic()) - lane.quick_at < _READ_MOMENT_SECONDS:
            try:
                return function(*args, **kwargs)
            finally:
                lane.observe(began)
        return await lane.run(lambda: function(*args, **kwargs))

    async def change(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation that changes files or directories. Returns and raises what it does.

        A caller that is cancelled waits for its end all the same.
        """
        lane = self._changes
        if (began := time.monotonic()) - lane.quick_at < _CHANGE_MOMENT_SECONDS:
            try:
                return function(*args, **kwargs)
            finally:
                lane.observe(began)
        return await lane.run(lambda: function(*args, **kwargs))

    def write(
        self, function: Callable[[memoryview], None], data: memoryview, *, is_kept: bool
    ) -> Awaitable[None] | None:
        """Run an operation that writes `data`. What it returns, if anything, is awaited before there is more.

        is_kept: whether `data` stays as it is after this has returned; else it is copied where the operation takes longer.
        Raises what the operation raises.
        """
        lane = self._changes
        if (began := time.monotonic()) - lane.quick_at < _WRITE_MOMENT_SECONDS:
            try:
                function(data)
            finally:
                lane.observe(began)
            return None
        kept = data if is_kept else memoryview(bytes(data))
        return lane.begin(lambda: function(kept))

    def is_quick(self) -> bool:
        """Whether a change was quick a moment ago, so that bytes of a body may be written inline."""
        return time.monotonic() - self._changes.quick_at < _WRITE_MOMENT_SECONDS

    def observe_change(self, began: float) -> None:
        """A change that `is_quick` allowed, or that a thread made, has ended just now. began: by the monotonic clock."""
        self._changes.observe(began)

    def close(self) -> None:
        """Returns when all that was begun has ended."""
        self._reads.close()
        self._changes.close()
        self._read_threads.close()


class _Lane:
    """Operations that wait for the same things. quick_at: when the last quick one ended, by the monotonic clock."""

    def __init__(self, name: str, threads: Threads) -> None:
        self.quick_at = float("-inf")
        self._slow_until = float("-inf")
        self._overdue = 0
        self._threads = threads
        self._clock = WaitClock()
        self._helper = _Helper(name, self._clock)

    def observe(self, began: float) -> None:
        """An operation has ended just now, in the thread of the caller."""
        now = time.monotonic()
        clock = self._clock
        if now - began <= SLOW_SECONDS or clock.waited(began, now) <= SLOW_SECONDS:
            if not self._overdue and now >= self._slow_until:
                self.quick_at = now
            if now - clock.looked_at > _LOOK_SECONDS:
                clock.look(now)
        else:
            self.quick_at = float("-inf")
            # Not every system tells what a thread lacked a processor: then that looks like a slow disk, for a short time.
            self._slow_until = now + min(SLOW_PERIOD_SECONDS, _SLOW_FACTOR * (now - began))

    def _look(self, now: float) -> None:
        if now - self._clock.looked_at > _LOOK_SECONDS:
            self._clock.look(now)

    async def run(self, operation: Callable[[], T]) -> T:
        """Run an operation that may be slow."""
        job = self._tried(operation)
        if job is None:
            return await self._run_in_thread(operation)
        if not job.is_done:
            await self._wait_for(job)
        return job.result()

    def begin(self, operation: Callable[[], None]) -> Awaitable[None] | None:
        """Like `run`; returns what is to be awaited, or None where it has ended already."""
        job = self._tried(operation)
        if job is None:
            return self._run_in_thread(operation)
        if not job.is_done:
            return self._finish(job)
        job.result()
        return None

    def _tried(self, operation: Callable[[], T]) -> _Job[T] | None:
        """The operation in the helper, waited for as long as the disk may be quick; None if it is not tried."""
        if self._overdue or self._helper.is_busy or time.monotonic() < self._slow_until:
            return None
        job = self._helper.start(operation)
        if job.ended.acquire(timeout=SLOW_SECONDS):
            self.quick_at = now = time.monotonic()
            self._look(now)
        elif not job.is_done:
            self.quick_at = float("-inf")
            self._overdue += 1
            job.notify(asyncio.get_running_loop().create_future(), self._came_back)
        return job

    def _came_back(self, waited: float) -> None:
        self._overdue -= 1
        # Else it was the helper that had to wait for a processor.
        if waited > SLOW_SECONDS:
            self._slow_until = time.monotonic() + SLOW_PERIOD_SECONDS

    async def _wait_for(self, job: _Job[T]) -> None:
        waiter = job.waiter
        if waiter is None:
            return
        # Shielded: a request that is cancelled must not give up the lock while a thread still writes.
        try:
            await asyncio.shield(waiter)
        except asyncio.CancelledError:
            with suppress(Exception):
                await asyncio.wait([waiter])
            raise

    async def _finish(self, job: _Job[None]) -> None:
        await self._wait_for(job)
        job.result()

    async def _run_in_thread(self, operation: Callable[[], T]) -> T:
        return await self._threads.run(self._timed, operation)

    def _timed(self, operation: Callable[[], T]) -> T:
        began = time.monotonic()
        self._clock.look(began)
        try:
            return operation()
        finally:
            if time.monotonic() - began > SLOW_SECONDS:
                self.observe(began)

    def close(self) -> None:
        self._helper.close()


class _Job(Generic[T]):
    """One operation in a helper. ended: a lock that is released at its end. waiter: resolved then, if there is one."""

    __slots__ = (
        "_back",
        "_operation",
        "_problem",
        "_result",
        "_waited",
        "ended",
        "is_done",
        "waiter",
    )

    def __init__(self, operation: Callable[[], T]) -> None:
        self._operation = operation
        self._result: T | None = None
        self._problem: BaseException | None = None
        self._waited = 0.0
        self._back: Callable[[float], None] | None = None
        self.ended = threading.Lock()
        self.ended.acquire()
        self.is_done = False
        self.waiter: asyncio.Future[None] | None = None

    def execute(self, clock: WaitClock) -> None:
        """In the helper."""
        began = time.monotonic()
        clock.look(began)
        try:
            self._result = self._operation()
        except BaseException as problem:  # noqa: BLE001 - raised again by `result`
            self._problem = problem
        self._waited = clock.waited(began, time.monotonic())

    def finish(self) -> None:
        """In the helper: tells whoever waits."""
        self.is_done = True
        self.ended.release()
        waiter = self.waiter
        if waiter is not None:
            with suppress(RuntimeError):
                # The loop is closed where nobody waits any more.
                waiter.get_loop().call_soon_threadsafe(self._wake)

    def notify(self, waiter: asyncio.Future[None], back: Callable[[float], None]) -> None:
        """Resolve `waiter` at the end, and call `back` with the seconds that it waited, in the event loop."""
        self._back = back
        self.waiter = waiter
        # It may have ended before the waiter was seen.
        if self.is_done:
            self._wake()

    def _wake(self) -> None:
        back, self._back = self._back, None
        if back is not None:
            back(self._waited)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def result(self) -> T:
        """What the operation returned. Raises what it raised."""
        if self._problem is not None:
            raise self._problem
        return cast(T, self._result)


class _Helper:
    """A thread that does one operation at a time. By bare locks: a pool of threads costs three times as much a time."""

    def __init__(self, name: str, clock: WaitClock) -> None:
        self.is_busy = False
        self._clock = clock
        self._name = name
        self._thread: threading.Thread | None = None
        self._next: _Job[object] | None = None
        self._wanted = threading.Lock()
        self._wanted.acquire()

    def start(self, operation: Callable[[], T]) -> _Job[T]:
        """Begin with an operation. Only while the helper is not busy."""
        if self._thread is None:
            # A daemon: a command that ends does not wait for a disk that does not come back.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        job = _Job(operation)
        self.is_busy = True
        self._next = cast("_Job[object]", job)
        self._wanted.release()
        return job

    def _run(self) -> None:
        while True:
            self._wanted.acquire()
            job, self._next = self._next, None
            if job is None:
                return
            job.execute(self._clock)
            self.is_busy = False
            job.finish()
            del job

    def close(self) -> None:
        """Returns when the thread has ended."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._wanted.release()
            thread.join()
