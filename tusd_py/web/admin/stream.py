"""The stream of the operators' page: server-sent events, one snapshot a second, made once for all who look."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tusd_py.background import cancel, record_failure, spawn
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.web.admin import models

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 1.0
_CHECK_EVERY = 2
"""Snapshots between two checks of whether an operator still is one."""
_MOST_VIEWERS = 32


class EventStream(StreamingResponse):
    """The stream for one viewer, who has a place from before the response begins until it is over, however it ends."""

    def __init__(
        self,
        stream: Stream,
        still_allowed: Callable[[], Awaitable[object]],
        headers: Mapping[str, str],
    ) -> None:
        """still_allowed: raises a ProtocolError once the viewer may look no longer."""
        super().__init__(
            stream.events(still_allowed), media_type="text/event-stream", headers=headers
        )
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._stream.viewer():
            await super().__call__(scope, receive, send)


class Stream:
    """Sends snapshots to all viewers. make: makes one."""

    def __init__(self, make: Callable[[], Awaitable[models.Snapshot]]) -> None:
        self._make = make
        self._viewers = 0
        self._task: asyncio.Task[None] | None = None
        self._latest = b""
        self._news = asyncio.Condition()
        self._closing = False

    @contextmanager
    def viewer(self) -> Iterator[None]:
        """Hold the place of a viewer. Raises a 503 if too many look already, or the server shuts down."""
        if self._viewers >= _MOST_VIEWERS or self._closing:
            raise errors.unavailable()
        self._viewers += 1
        try:
            if self._task is None or self._task.done():
                self._task = spawn(self._run(), "operators' stream")
            yield
        finally:
            self._viewers -= 1

    async def close(self) -> None:
        """End all streams, as the server shuts down."""
        self._closing = True
        async with self._news:
            self._news.notify_all()
        await cancel(self._task)

    async def events(self, still_allowed: Callable[[], Awaitable[object]]) -> AsyncIterator[bytes]:
        """Yield the events for one viewer. still_allowed: raises a ProtocolError once it may look no longer."""
        try:
            yield b"retry: 1000\n\n"
            sent = 0
            while await self._next():
                sent += 1
                if sent % _CHECK_EVERY == 0:
                    await still_allowed()
                yield self._latest
        except ProtocolError as problem:
            yield b"event: end\ndata: " + problem.code.encode() + b"\n\n"

    async def _next(self) -> bool:
        """Wait for the next snapshot; False at the end of all streams."""
        async with self._news:
            if not self._closing:
                await self._news.wait()
        return not self._closing

    async def _run(self) -> None:
        """Make snapshots while anybody looks."""
        loop = asyncio.get_running_loop()
        following = loop.time()
        with suppress(asyncio.CancelledError):
            while self._viewers:
                try:
                    snapshot = await self._make()
                    self._latest = b"data: " + snapshot.model_dump_json().encode() + b"\n\n"
                except Exception as problem:  # noqa: BLE001 - the edge of a task: the next snapshot may be made
                    record_failure("stream", problem, "a snapshot for operators failed")
                async with self._news:
                    self._news.notify_all()
                # Not a pause: making it takes time, too.
                following = max(following + _INTERVAL_SECONDS, loop.time())
                await asyncio.sleep(following - loop.time())
