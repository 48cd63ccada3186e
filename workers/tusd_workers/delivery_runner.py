"""Where a worker's deliveries are done: hooks that live as long as the worker does, and whose turn it is.

Hooks run in an event loop in a thread of its own, so that a hook keeps its connections from one event to the next. The job
waits for them in the main thread and meanwhile keeps its turn, which a hook that blocks the loop cannot prevent.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TypeVar

from redis import Redis
from redis.exceptions import RedisError

from tusd_py.events import loading as configured_hooks
from tusd_py.events.model import HookContext
from tusd_py.jobs.connection import connect
from tusd_py.jobs.delivery_queue import Deliveries
from tusd_py.metrics.counters import Counters
from tusd_py.redis import Keys, RedisClient
from tusd_py.service.backends import file_store, redis_client
from tusd_py.storage.base import StorageError, UploadGone, UploadNotFound
from tusd_workers.current import Instance
from tusd_workers.delivery import Delivery, Patience, Rest
from tusd_workers.turn import Turn

logger = logging.getLogger(__name__)

T = TypeVar("T")

_desk: list[Desk] = []


def here() -> Desk:
    """The desk of this process. Raises RuntimeError where there is none."""
    if not _desk:
        raise RuntimeError("events are delivered by a worker of an instance (tusd-py worker)")
    return _desk[0]


@contextmanager
def opened(instance: Instance) -> Iterator[None]:
    """This process delivers during the block. Raises HookError."""
    desk = Desk(instance)
    desk.open()
    _desk[:] = [desk]
    try:
        yield
    finally:
        _desk.clear()
        desk.close()


class Desk:
    """See the module."""

    def __init__(self, instance: Instance) -> None:
        """Raises HookError for a hook that cannot be loaded."""
        settings = instance.settings
        self._settings = settings
        self._url = instance.redis_url
        self._keys = Keys(settings.redis_prefix)
        self._store = file_store(settings)
        self._hooks = configured_hooks.in_worker(settings)
        self._delivery = Delivery(
            self._store, self._store.outbox, self._hooks, Patience.of(settings)
        )
        self._connection: Redis = connect(self._url)
        self._deliveries = Deliveries(self._connection, prefix=settings.redis_prefix)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hooks", daemon=True)
        self._redis: RedisClient | None = None

    # Its life

    def open(self) -> None:
        """Starts the hooks, and puts into the queue what waits and has no job. Raises HookError."""
        self._thread.start()
        self._run(self._start()).result()
        with suppress(RedisError, StorageError):
            self.look()

    async def _start(self) -> None:
        settings = self._settings
        self._redis = redis_client(settings, self._url)
        await self._redis.start()
        await self._hooks.start(
            HookContext(
                settings=settings,
                state=self._redis,
                offset_of=self._offset_of,
                counters=Counters(),
            )
        )

    async def _offset_of(self, upload_id: str) -> tuple[int, bool] | None:
        try:
            upload = await self._store.load(upload_id)
        except (UploadGone, UploadNotFound):
            return None
        return upload.offset, upload.finished

    def close(self) -> None:
        """Lets the hooks end."""
        self._run(self._stop()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._store.close()
        self._connection.close()

    async def _stop(self) -> None:
        await self._hooks.stop()
        if self._redis is not None:
            await self._redis.stop()

    def _run(self, work: Coroutine[None, None, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    # What it does

    def look(self) -> int:
        """Puts into the queue what waits and has no job; how many uploads. Raises RedisError, StorageError."""
        waiting = self._run(self._waiting()).result()
        return self._deliveries.add_missing(waiting) if waiting else 0

    async def _waiting(self) -> list[str]:
        return [each async for some in self._store.outbox.uploads() for each in some]

    def deliver(self, upload_id: str) -> None:
        """Delivers what waits of an upload, unless another worker does. Raises StorageError, RedisError."""
        lease = self._settings.lock_lease
        while True:
            turn = Turn(self._connection, self._keys.delivery_turn(upload_id), lease=lease)
            if not turn.begin():
                # Who has it looks again when done; but it may die before.
                self._deliveries.add_at(upload_id, time.time() + lease)
                return
            try:
                rest = self._wait(self._run_turn(upload_id), turn)
            finally:
                with suppress(RedisError):
                    turn.end()
            self._tell_counts()
            if rest.next is not None:
                self._deliveries.add_at(upload_id, rest.next)
                return
            # Whoever came in the meantime was sent away.
            if not self._run(self._delivery.has_news(upload_id, rest.passed_over)).result():
                return

    def _run_turn(self, upload_id: str) -> tuple[Future[Rest], threading.Event]:
        lost = threading.Event()
        turn = self._delivery.in_turn(upload_id, lambda: not lost.is_set())
        return self._run(turn), lost

    def _wait(self, running: tuple[Future[Rest], threading.Event], turn: Turn) -> Rest:
        """What comes out; the turn is kept until then, as long as it can be."""
        work, lost = running
        try:
            while True:
                try:
                    return work.result(self._settings.lock_lease / 3)
                except TimeoutError:
                    if work.done():
                        raise
                    with suppress(RedisError):
                        if not turn.renew():
                            lost.set()
        finally:
            # The worker is told to end at once, if it is not done.
            work.cancel()

    def _tell_counts(self) -> None:
        counts, self._delivery.counts = self._delivery.counts, Counter()
        key = self._keys.deliveries()
        with suppress(RedisError), self._connection.pipeline(transaction=False) as pipeline:
            for what, count in counts.items():
                pipeline.hincrby(key, what, count)
            pipeline.execute()
