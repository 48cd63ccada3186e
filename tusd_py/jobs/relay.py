"""Queues deliveries for workers: the server's end of the outbox.

The server never waits for it: upload ids are collected and queued together by a thread, and again later if Redis is
unavailable. Ids that are lost on the way (the server was killed, Redis was emptied) are found in the outbox by the sweep.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from redis.exceptions import RedisError

from tusd_py.background import cancel, keep_running
from tusd_py.jobs.connection import Refusals, connect
from tusd_py.jobs.delivery_queue import Deliveries, uploads_waiting
from tusd_py.settings.model import Settings
from tusd_py.storage.base import Outbox

logger = logging.getLogger(__name__)

_MAX_PENDING = 100_000
"""Uploads remembered while Redis is unavailable. Others are found in the outbox later."""
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.5, 10.0
"""Pauses between attempts while Redis is unavailable."""

T = TypeVar("T")


class Relay:
    """See the module. url: of the Redis."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._connection = connect(url)
        self._refusals = Refusals(url)
        self._deliveries = Deliveries(self._connection, prefix=settings.redis_prefix)
        self._pending: dict[str, None] = {}
        self._has_pending = asyncio.Event()
        # One thread is enough, and keeps the order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tusd-relay")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start to queue deliveries."""
        self._task = keep_running(self._run, "relay")

    async def stop(self) -> None:
        """Stop after a last attempt to queue what is pending."""
        await cancel(self._task)
        if self._pending:
            await self._queue_pending()
        await asyncio.to_thread(self._thread.shutdown)
        self._connection.close()

    def enqueue(self, upload_id: str) -> None:
        """Queue the delivery of an upload's events. Returns at once; a later `scan` finds what is lost."""
        if len(self._pending) < _MAX_PENDING:
            self._pending[upload_id] = None
            self._has_pending.set()

    async def scan(self, outbox: Outbox) -> int:
        """Queue deliveries for all events in the outbox that lack one; return the number of uploads.

        While Redis is unavailable, nothing is queued. Raises StorageError.
        """
        waiting = await uploads_waiting(outbox)
        if not waiting:
            return 0
        try:
            return await self._in_thread(lambda: self._deliveries.add_missing(waiting))
        except RedisError as problem:
            if not self._refusals.report(problem):
                logger.debug("the outbox was not passed on: %s", problem)
            return 0

    async def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            await self._has_pending.wait()
            self._has_pending.clear()
            if await self._queue_pending():
                pause = _FIRST_PAUSE_SECONDS
                continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
            self._has_pending.set()

    async def _queue_pending(self) -> bool:
        """Queue all pending deliveries; return False if Redis is unavailable."""
        pending, self._pending = self._pending, {}
        try:
            await self._in_thread(lambda: self._deliveries.add(pending))
        except RedisError as problem:
            if not self._refusals.report(problem):
                logger.debug("%d uploads wait to be delivered: %s", len(pending), problem)
            self._pending = pending | self._pending
            return False
        return True

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
