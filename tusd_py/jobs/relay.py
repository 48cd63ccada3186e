"""Gets workers to tell what is in the outbox: the server's end of deliveries.

Nothing of the server waits for it: uploads are noted, and go into the queue together, by a thread. What cannot be said while
Redis is away is said later; what is lost on the way (the server was killed, Redis was emptied) lies in the outbox, where the
sweep finds it. Not for: telling events, which is done in workers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from redis.exceptions import RedisError

from tusd_py.background import keep_running
from tusd_py.jobs.connection import Refusals, connect
from tusd_py.jobs.delivery_queue import Deliveries
from tusd_py.settings.model import Settings
from tusd_py.storage.base import Outbox

logger = logging.getLogger(__name__)

_MOST = 100_000
"""Uploads that are remembered while Redis is away. The others are found in the outbox."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
"""Seconds between attempts while Redis is away, at first and in the end."""

T = TypeVar("T")


class Relay:
    """See the module, and `tusd_py.events.publisher.Relay`. url: of the Redis."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._connection = connect(url)
        self._refusals = Refusals(url)
        self._deliveries = Deliveries(self._connection, prefix=settings.redis_prefix)
        self._noted: dict[str, None] = {}
        self._news = asyncio.Event()
        # One is enough, and keeps the order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tusd-relay")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to put into the queue what is noted."""
        self._task = keep_running(self._run, "relay")

    async def stop(self) -> None:
        """Tries once more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._noted:
            await self._pass_on()
        await asyncio.to_thread(self._thread.shutdown)
        self._connection.close()

    def enqueue(self, upload_id: str, /) -> None:
        """See `tusd_py.events.publisher.Relay`."""
        if len(self._noted) < _MOST:
            self._noted[upload_id] = None
            self._news.set()

    async def scan(self, outbox: Outbox) -> int:
        """See `tusd_py.events.publisher.Relay`. While Redis is away nothing is passed on. Raises StorageError."""
        waiting = [upload_id async for some in outbox.uploads() for upload_id in some]
        if not waiting:
            return 0
        try:
            return await self._in_thread(lambda: self._deliveries.add_missing(waiting))
        except RedisError as problem:
            if not self._refusals.report(problem):
                logger.debug("the outbox was not passed on: %s", problem)
            return 0

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            await self._news.wait()
            self._news.clear()
            if await self._pass_on():
                pause = _FIRST_PAUSE
                continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._news.set()

    async def _pass_on(self) -> bool:
        """Puts into the queue what is noted; False if Redis does not take it."""
        noted, self._noted = self._noted, {}
        try:
            await self._in_thread(lambda: self._deliveries.add(noted))
        except RedisError as problem:
            if not self._refusals.report(problem):
                logger.debug("%d uploads wait to be delivered: %s", len(noted), problem)
            self._noted = noted | self._noted
            return False
        return True

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
