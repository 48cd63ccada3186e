"""Short file operations of a store: run inline while the disk is quick, in a thread while it is slow.

An operation on the page cache takes microseconds, less than a switch to a thread. But a disk may hang (a full queue, a frozen
snapshot, an unreachable file server), and an operation that waits for it in the event loop blocks every client. So an operation
runs inline only if another one was quick a moment ago. Otherwise a helper thread runs it, and the event loop waits for it as
long as for a quick disk, then continues with other work. After a slow operation, the next ones run in threads at once, until
the disk has had time to recover.

One risk remains: if the disk starts to hang within that moment, one operation blocks the event loop. The moment is so short
that this needs hundreds of operations a second, and so long that helpers cost no more than a fiftieth of a processor.

Reads and changes are separate: a file system that accepts no changes mostly still serves reads from memory. Syncs, joins and
removals are always slow and always run in threads, not here.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, ParamSpec, TypeVar, cast

from tusd_py.storage.file.disk_waits import WaitClock
from tusd_py.storage.file.threads import Threads, until_done

SLOW_SECONDS = 0.02
"""An operation on the page cache takes far less; one that takes longer waits for the disk."""
SLOW_PERIOD_SECONDS = 1.0
"""The longest time for which operations run in threads after a slow one."""
_SLOW_FACTOR = 5
"""That time in multiples of the slow operation's own."""
_CHANGE_MOMENT_SECONDS = 0.005
"""Uploads that follow each other at once need no helper then, although their process may wait for a processor in between."""
_READ_MOMENT_SECONDS = 0.02
"""Reads from memory rarely wait, and HEAD does little else."""
_LOOK_SECONDS = 0.002
"""Age up to which a count of a thread's time without a processor is used; at most that much of it is missed."""

_TRIAL_BYTES = 4096
"""What a write tries the disk with first, if it has not been used for a moment."""

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """Runs the short file operations of one store. threads: for changes while the disk is slow.

    Its methods are for the event loop, except `observed`.
    """

    def __init__(self, threads: Threads) -> None:
        # Separate, so that reads do not queue behind changes that wait for the disk.
        self._read_threads = Threads("tusd-read")
        clock = WaitClock()
        self._reads = _Lane("tusd-read-helper", self._read_threads, clock)
        self._changes = _Lane("tusd-change-helper", threads, clock)

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation that changes nothing: open, read, stat. Returns its result."""
        lane = self._reads
        if (began := time.monotonic()) - lane.quick_at < _READ_MOMENT_SECONDS:
            try:
                return function(*args, **kwargs)
            finally:
                lane.observe(began)
        return await lane.run(lambda: function(*args, **kwargs))

    async def change(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation that changes files or directories. Returns its result.

        A cancelled caller still waits for it to end.
        """
        lane = self._changes
        if (began := time.monotonic()) - lane.quick_at < _CHANGE_MOMENT_SECONDS:
            try:
                return function(*args, **kwargs)
            finally:
                lane.observe(began)
        return await lane.run(lambda: function(*args, **kwargs))

    def write(
        self, function: Callable[[memoryview], None], data: memoryview
    ) -> Awaitable[None] | None:
        """Run an operation that writes `data`. If this returns an awaitable, await it before the next write.

        A slow operation gets a copy of `data` unless it is read-only, and the bytes may come to it in two pieces.
        """
        lane = self._changes
        if time.monotonic() - lane.quick_at >= _CHANGE_MOMENT_SECONDS:
            if lane.is_slow or len(data) <= _TRIAL_BYTES:
                return lane.begin(partial(function, _kept(data)))
            # The helper gets few bytes: it runs on another processor, which copies slowly what this one has received.
            trial = lane.begin(partial(function, _kept(data[:_TRIAL_BYTES])))
            data = data[_TRIAL_BYTES:]
            if trial is not None:
                return lane.finish(trial, partial(function, _kept(data)))
        began = time.monotonic()
        try:
            function(data)
        finally:
            lane.observe(began)
        return None

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Take the time of the block, which makes a change in a thread of the caller's."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._changes.observe(began)

    def close(self) -> None:
        """Wait for the running operations."""
        self._reads.close()
        self._changes.close()
        self._read_threads.close()


def _kept(data: memoryview) -> memoryview:
    """Return bytes that stay as they are while a thread writes them."""
    return data if data.readonly else memoryview(bytes(data))


def _acquired_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


class _Lane:
    """Reads or changes. quick_at: when the last quick operation ended, by the monotonic clock.

    clock: counts for both, as they share the event loop's thread.
    """

    def __init__(self, name: str, threads: Threads, clock: WaitClock) -> None:
        self.quick_at = float("-inf")
        self._slow_until = float("-inf")
        self._overdue = 0
        self._threads = threads
        self._clock = clock
        self._helper = _Helper(name, clock)

    @property
    def is_slow(self) -> bool:
        """Whether operations run in threads at once."""
        return self._overdue > 0 or self._helper.is_busy or time.monotonic() < self._slow_until

    def observe(self, began: float) -> None:
        """Report the end of an operation, in its own thread."""
        now = time.monotonic()
        clock = self._clock
        if now - began <= SLOW_SECONDS or clock.waited(began, now) <= SLOW_SECONDS:
            if not self._overdue and now >= self._slow_until:
                self.quick_at = now
            if now - clock.looked_at > _LOOK_SECONDS:
                clock.look(now)
        else:
            self.quick_at = float("-inf")
            # On systems that do not count a thread's time without a processor, that briefly looks like a slow disk.
            self._slow_until = now + min(SLOW_PERIOD_SECONDS, _SLOW_FACTOR * (now - began))

    async def run(self, operation: Callable[[], T]) -> T:
        """Run an operation that may be slow."""
        job = self._try_in_helper(operation)
        if job is None:
            return await self._run_in_thread(operation)
        if not job.is_done:
            return await self._finish(job)
        return job.result()

    def begin(self, operation: Callable[[], None]) -> Awaitable[None] | None:
        """Like `run`; returns an awaitable, or None if the operation has ended."""
        job = self._try_in_helper(operation)
        if job is None:
            return self._run_in_thread(operation)
        if not job.is_done:
            return self._finish(job)
        job.result()
        return None

    def _try_in_helper(self, operation: Callable[[], T]) -> _Job[T] | None:
        """Run the operation in the helper and wait as long as for a quick disk; None if the helper is not used."""
        if self.is_slow:
            return None
        job = self._helper.start(operation)
        if job.ended.acquire(timeout=SLOW_SECONDS):
            self.quick_at = now = time.monotonic()
            if now - self._clock.looked_at > _LOOK_SECONDS:
                self._clock.look(now)
        elif not job.is_done:
            self.quick_at = float("-inf")
            self._overdue += 1
            job.notify(asyncio.get_running_loop().create_future(), self._on_overdue_end)
        return job

    def _on_overdue_end(self, waited: float) -> None:
        self._overdue -= 1
        # Otherwise the helper only waited for a processor.
        if waited > SLOW_SECONDS:
            self._slow_until = time.monotonic() + SLOW_PERIOD_SECONDS

    async def finish(self, first: Awaitable[None], then: Callable[[], None]) -> None:
        """Wait for an operation, then run another one."""
        await first
        await self.run(then)

    async def _finish(self, job: _Job[T]) -> T:
        if job.waiter is not None:
            await until_done(job.waiter)
        return job.result()

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


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    """One operation in a helper. ended: a lock that is released at its end. waiter: resolved then, if set."""

    operation: Callable[[], T]
    ended: threading.Lock = field(default_factory=_acquired_lock, init=False)
    is_done: bool = field(default=False, init=False)
    waiter: asyncio.Future[None] | None = field(default=None, init=False)
    _result: T | None = field(default=None, init=False)
    _problem: BaseException | None = field(default=None, init=False)
    _waited: float = field(default=0.0, init=False)
    _back: Callable[[float], None] | None = field(default=None, init=False)

    def execute(self, clock: WaitClock) -> None:
        """Run the operation, in the helper."""
        began = time.monotonic()
        clock.look(began)
        try:
            self._result = self.operation()
        except BaseException as problem:  # noqa: BLE001 - raised again by `result`
            self._problem = problem
        self._waited = clock.waited(began, time.monotonic())

    def finish(self) -> None:
        """Wake the waiter, in the helper."""
        self.is_done = True
        self.ended.release()
        waiter = self.waiter
        if waiter is not None:
            with suppress(RuntimeError):
                # The loop is closed if nothing waits for it.
                waiter.get_loop().call_soon_threadsafe(self._wake)

    def notify(self, waiter: asyncio.Future[None], back: Callable[[float], None]) -> None:
        """At the end, resolve `waiter` and call `back` with the seconds that the operation waited, in the event loop."""
        self._back = back
        self.waiter = waiter
        # It may have ended before the waiter was set.
        if self.is_done:
            self._wake()

    def _wake(self) -> None:
        back, self._back = self._back, None
        if back is not None:
            back(self._waited)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def result(self) -> T:
        """Return what the operation returned, or raise what it raised."""
        problem, self._problem = self._problem, None
        if problem is not None:
            try:
                raise problem
            finally:
                # Its traceback refers to this frame: a reference cycle.
                del problem
        return cast(T, self._result)


class _Helper:
    """A thread that runs one operation at a time. Uses bare locks: a thread pool costs three times as much."""

    def __init__(self, name: str, clock: WaitClock) -> None:
        self.is_busy = False
        self._clock = clock
        self._name = name
        self._thread: threading.Thread | None = None
        self._next: _Job[object] | None = None
        self._wanted = _acquired_lock()

    def start(self, operation: Callable[[], T]) -> _Job[T]:
        """Start an operation. Only while the helper is not busy."""
        if self._thread is None:
            # A daemon: a command that ends must not wait for a disk that hangs.
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
        """Wait for the thread to end."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._wanted.release()
            thread.join()
