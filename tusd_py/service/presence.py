"""Tell operators what this process receives: once a second while one looks, and counts for the last hour.

Nothing is done for a request: bodies that run are looked at when it is time. Not for: showing it (`web/admin`).
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from contextlib import suppress
from typing import NamedTuple

from tusd_py.protocol.errors import DUPLICATE_UPLOAD
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.due_index import DueIndexWriter
from tusd_py.redis.live import BodyDocument, LiveBoard, ServerDocument
from tusd_py.telemetry.counters import Counters
from tusd_py.uploads.receive import RunningBody
from tusd_py.uploads.service import Uploads

_INTERVAL_SECONDS = 1.0
_COUNT_SECONDS = 5.0
"""Interval at which counts are added to those of all servers."""
_MOST_BODIES = 500
"""Bodies of one process that are told; the longest running ones. Of more only their number and rate are."""
_MOST_TEXT = 200
_SMOOTHING_SECONDS = 3.0
"""The time constant of the average of rates: slow bodies are read from time to time, and their clients send in bursts."""


class _Seen(NamedTuple):
    """A running body when it was looked at last. moved_at: when its last byte was seen. rate: None when it was seen once."""

    offset: int
    at: float
    moved_at: float
    rate: float | None


class Presence:
    """Tells what one process receives. names: whether operators may see file names."""

    def __init__(
        self,
        uploads: Uploads,
        counters: Counters,
        board: LiveBoard,
        writer: DueIndexWriter,
        *,
        names: bool,
    ) -> None:
        self.server = f"{socket.gethostname()}/{os.getpid()}"
        self._uploads = uploads
        self._counters = counters
        self._board = board
        self._writer = writer
        self._names = names
        self._seen: dict[int, _Seen] = {}
        self._total = (0, 0.0)
        self._counted = self._counts()
        self._latest: ServerDocument | None = None

    async def run(self) -> None:
        """Tell until cancelled."""
        count_at = time.monotonic() + _COUNT_SECONDS
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            with suppress(RedisUnavailable):
                is_watched, self._writer.lists = await self._board.is_watched()
                if is_watched:
                    await self._board.write(self._look())
                if self._writer.lists and time.monotonic() >= count_at:
                    count_at = time.monotonic() + _COUNT_SECONDS
                    await self._count()

    def now(self) -> ServerDocument:
        """Return what this process receives, looking at most once a second."""
        latest = self._latest
        # A little more than the interval of `run`, so that both show the same.
        if latest is None or time.time() - latest["at"] > 1.5 * _INTERVAL_SECONDS:
            return self._look()
        return latest

    async def _count(self) -> None:
        counts = self._counts()
        added = {name: number - self._counted[name] for name, number in counts.items()}
        added = {name: number for name, number in added.items() if number > 0}
        if added:
            await self._board.count(time.time(), added)
        self._counted = counts

    def _counts(self) -> dict[str, int]:
        counters = self._counters
        running = sum(each.offset - each.upload.offset for each in self._uploads.running_bodies())
        duplicates = sum(
            number for (_, code), number in counters.errors.items() if code == DUPLICATE_UPLOAD
        )
        return {
            "bytes": sum(counters.bytes_received.values()) + running,
            "created": counters.uploads_created,
            "finished": counters.uploads_finished,
            "refused": sum(counters.errors.values()),
            "duplicates": duplicates,
        }

    def _look(self) -> ServerDocument:
        now = time.monotonic()
        before, self._seen = self._seen, {}
        bodies: list[BodyDocument] = []
        receiving = 0
        for body in self._uploads.running_bodies():
            receiving += 1
            if receiving <= _MOST_BODIES:
                seen = self._seen[body.key] = _seen(body.offset, before.get(body.key), now)
                bodies.append(self._document(body, seen, now))
        total, at = self._total
        bytes_now = self._counts()["bytes"]
        self._total = bytes_now, now
        self._latest = {
            "server": self.server,
            "at": time.time(),
            "receiving": receiving,
            "connections": self._counters.connections_open,
            # Nobody looked before, so that there is nothing to compare with.
            "rate": (bytes_now - total) / (now - at) if now - at < 10 * _INTERVAL_SECONDS else 0.0,
            "bodies": bodies,
        }
        return self._latest

    def _document(self, body: RunningBody, seen: _Seen, now: float) -> BodyDocument:
        info = body.upload.info
        return {
            "id": info.id,
            "server": self.server,
            "client": body.client[:_MOST_TEXT],
            "owner": info.owner,
            "name": body.upload.info.file_name[:_MOST_TEXT] if self._names else "",
            "offset": body.offset,
            "size": info.length,
            "rate": round(seen.rate or 0.0, 1),
            "silent": round(now - seen.moved_at, 1),
        }


def _seen(offset: int, before: _Seen | None, now: float) -> _Seen:
    if before is None:
        return _Seen(offset, now, now, None)
    seconds = now - before.at
    if seconds < _INTERVAL_SECONDS / 4:
        return before
    moved = offset - before.offset
    rate = moved / seconds
    if before.rate is not None:
        rate += (before.rate - rate) * math.exp(-seconds / _SMOOTHING_SECONDS)
    return _Seen(offset, now, now if moved else before.moved_at, rate)
