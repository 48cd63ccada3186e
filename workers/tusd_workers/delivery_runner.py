"""Runs deliveries in a worker's process: keeps hooks started between jobs, and leases each upload to one worker in Redis.

Hooks run in an event loop in a thread of its own, so that a hook keeps its connections from one event to the next. The job
waits for them in the main thread and renews the lease meanwhile, which a hook that blocks the loop cannot prevent. Nothing can
end such a hook but the end of the process: if it blocks the loop for longer than hooks may take, the process exits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import NoReturn, TypeVar

from redis import Redis
from redis.exceptions import LockNotOwnedError, RedisError
from redis.lock import Lock

from tusd_py import logs
from tusd_py.events import loading as configured_hooks
from tusd_py.events.model import HookContext, Progress
from tusd_py.jobs.connection import connect
from tusd_py.jobs.delivery_queue import Deliveries, uploads_waiting
from tusd_py.redis import Keys, RedisClient
from tusd_py.service.backends import create_store, redis_client
from tusd_py.storage.base import StorageError, UploadGone, UploadNotFound
from tusd_py.telemetry.counters import Counters
from tusd_workers.current import Instance
from tusd_workers.delivery import Delivery, Outcome, RetryPolicy

logger = logging.getLogger(__name__)

_STOP_SECONDS = 50.0
"""How long a hook may block the event loop when it is stopped: less than the unit's `TimeoutStopSec`, so that it is logged."""

T = TypeVar("T")

_current: list[DeliveryRunner] = []


def current() -> DeliveryRunner:
    """Return the runner of this process. Raises RuntimeError where there is none."""
    if not _current:
        raise RuntimeError("events are delivered by a worker of an instance (tusd-py worker)")
    return _current[0]


def deliver(upload_id: str) -> None:
    """Run the delivery job of an upload. Raises RedisUnavailable, StorageError, RedisError; the next sweep queues it again."""
    current().deliver(upload_id)


@contextmanager
def running(instance: Instance) -> Iterator[None]:
    """Deliver in this process during the block. Raises HookError."""
    runner = DeliveryRunner(instance)
    runner.open()
    _current[:] = [runner]
    try:
        yield
    finally:
        _current.clear()
        runner.close()


class DeliveryRunner:
    """Delivers the events of one upload at a time to the hooks of one instance."""

    def __init__(self, instance: Instance) -> None:
        """Load the hooks. Raises HookError for a hook that cannot be loaded."""
        settings = instance.settings
        self._settings = settings
        self._url = instance.redis_url
        self._keys = Keys(settings.redis_prefix)
        self._store = create_store(settings)
        self._hooks = configured_hooks.in_worker(settings)
        retries = RetryPolicy(settings.hooks_delivery_attempts, settings.hooks_delivery_backoff)
        self._delivery = Delivery(self._store, self._store.outbox, self._hooks, retries)
        self._connection: Redis = connect(self._url)
        self._deliveries = Deliveries(self._connection, prefix=settings.redis_prefix)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hooks", daemon=True)
        self._redis: RedisClient | None = None

    # Start and stop

    def open(self) -> None:
        """Start the hooks, and queue a job for each upload that has events waiting and no job. Raises HookError."""
        self._thread.start()
        self._result(self._run(self._start()))
        with suppress(RedisError, StorageError):
            self.queue_missing()

    async def _start(self) -> None:
        settings = self._settings
        self._redis = redis_client(settings, self._url)
        await self._redis.start()
        await self._hooks.start(
            HookContext(
                settings=settings,
                state=self._redis,
                progress_of=self._progress_of,
                counters=Counters(),
            )
        )

    async def _progress_of(self, upload_id: str) -> Progress | None:
        try:
            upload = await self._store.load(upload_id)
        except (UploadGone, UploadNotFound):
            return None
        return Progress(upload.offset, upload.finished, upload.changed_at)

    def close(self) -> None:
        """Stop the hooks, and close the connections. Ends the process if a hook blocks the loop."""
        self._result(self._run(self._stop()), patience=_STOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._connection.close()

    async def _stop(self) -> None:
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._hooks.stop()
        except TimeoutError:
            message = f"Hooks have not stopped within {_STOP_SECONDS:g} s; ending without them"
            logs.event(logger, logging.ERROR, "stopping", message=message)
        if self._redis is not None:
            await self._redis.stop()
        await self._store.stop()

    def _run(self, work: Coroutine[None, None, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    # Jobs

    def queue_missing(self) -> int:
        """Queue a job for each upload that has events waiting and no job; return how many. Raises RedisError, StorageError."""
        waiting = self._result(self._run(uploads_waiting(self._store.outbox)))
        return self._deliveries.add_missing(waiting)

    def deliver(self, upload_id: str) -> None:
        """Deliver the waiting events of an upload, unless another worker does. Raises StorageError, RedisError."""
        while True:
            lease = self._lease(upload_id)
            if not lease.acquire():
                # Its holder looks for new events before it ends; but it may die before.
                self._deliveries.add_at(upload_id, time.time() + self._settings.lock_lease)
                return
            try:
                outcome = self._deliver(upload_id, lease)
            finally:
                with suppress(RedisError):
                    lease.release()
            self._add_counts()
            if outcome.next is not None:
                self._deliveries.add_at(upload_id, outcome.next)
                return
            # A job for an event that came meanwhile found the lease taken and ended.
            news = self._run(self._delivery.has_news(upload_id, outcome.passed_over))
            if not self._result(news):
                return

    def _lease(self, upload_id: str) -> Lock:
        key = self._keys.delivery_lease(upload_id)
        return Lock(self._connection, key, timeout=self._settings.lock_lease, blocking=False)

    def _deliver(self, upload_id: str, lease: Lock) -> Outcome:
        """Deliver, and renew the lease meanwhile."""
        lost = threading.Event()
        work = self._run(self._delivery.deliver(upload_id, lambda: not lost.is_set()))

        def renew() -> None:
            try:
                lease.reacquire()
            except LockNotOwnedError:
                lost.set()
            except RedisError:
                # Without Redis no other worker gets the lease either.
                pass

        try:
            return self._result(work, renew)
        finally:
            # The worker may be told to stop at once, before the delivery is done.
            work.cancel()

    def _result(
        self,
        work: Future[T],
        meanwhile: Callable[[], None] | None = None,
        *,
        patience: float | None = None,
    ) -> T:
        """Wait for work in the loop, and call `meanwhile` now and then. Ends the process if a hook blocks the loop.

        patience: seconds for which the loop may be blocked; None for the time limit of a hook.

        The time-outs of hooks are of no use against that, as they need the loop.
        """
        longest = self._hooks.longest_seconds if patience is None else patience
        interval = min(self._settings.lock_lease / 3, longest)
        blocked = 0.0
        while True:
            heard = threading.Event()
            self._loop.call_soon_threadsafe(heard.set)
            try:
                return work.result(interval)
            except TimeoutError:
                if work.done():
                    raise
            # Counted, not by the clock: the process itself may have stood still.
            blocked = 0.0 if heard.is_set() else blocked + interval
            if blocked >= longest:
                self._exit(f"a hook blocked its event loop for {blocked:.0f} s")
            if meanwhile is not None:
                meanwhile()

    def _exit(self, reason: str) -> NoReturn:
        """End the process at once, to be started anew: a thread cannot be ended. The current attempt was counted before."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        logs.event(
            logger,
            logging.CRITICAL,
            "worker ends",
            hook=self._delivery.calling or None,
            at=f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else None,
            reason=reason,
        )
        logging.shutdown()
        os._exit(1)

    def _add_counts(self) -> None:
        counts, self._delivery.counts = self._delivery.counts, Counter()
        key = self._keys.deliveries
        with suppress(RedisError), self._connection.pipeline(transaction=False) as pipeline:
            for what, count in counts.items():
                pipeline.hincrby(key, what, count)
            pipeline.execute()
