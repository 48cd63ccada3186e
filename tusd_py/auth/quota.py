"""How many unfinished uploads somebody has, where their token limits it.

Redis has a list for each such owner, of no more ids than the limit allows, into which a creation enters its own. Nothing is
taken off when uploads finish or go: only when the list is full are its ids looked up in the store, which knows the truth,
until there is one that is unfinished no more and makes room. So nobody is refused before all of them were looked up, a crash
leaves nothing that counts for ever, and no finish waits for Redis. With Redis emptied, earlier uploads do not count any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from tusd_py.protocol import errors
from tusd_py.redis import RedisClient, RedisUnavailable, Script

logger = logging.getLogger(__name__)

_LOOKED_UP = 50
"""Ids at a time, those first that were not looked up for longest. The first lot in which there is room is the last."""
_CREATING = 120.0
"""Seconds that a creation may take, hooks included; until then an id that the store does not know may still come."""
_KEPT = 400 * 86_400.0

# KEYS: open. ARGV: id, limit, milliseconds that it is kept. 1, or all ids with their times where there is no room.
_ENTER = Script(
    "enter an open upload",
    """\
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then
    return redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
  end
  redis.call('ZADD', KEYS[1], now, ARGV[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
""",
)

T = TypeVar("T")

LookUp = Callable[[str], Awaitable[bool | None]]
"""Whether an upload is unfinished; None if there is none, and never was as far as is known."""


class OpenUploads:
    """Counts. Whoever creates an upload enters it before, and leaves it again if nothing comes of it."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def enter(self, owner: str, upload_id: str, limit: int, look_up: LookUp) -> None:
        """Counts an upload that is about to be created. Raises a 429 if there are `limit` already, a 503 without Redis."""
        try:
            # Others may take the room that is made; each round makes more, or finds none.
            while (found := await self._enter(owner, upload_id, limit)) is not None:
                if not await self._clear(owner, found, look_up):
                    break
            else:
                return
        except RedisUnavailable as problem:
            logger.warning("open uploads cannot be counted: %s", problem)
            raise errors.unavailable() from None
        raise errors.too_many_uploads(limit)

    async def leave(self, owner: str, upload_id: str) -> None:
        """Counts an upload no more that was not created."""
        try:
            await self._redis.command("ZREM", self._redis.keys.open_uploads(owner), upload_id)
        except RedisUnavailable as problem:
            logger.warning("upload %s is counted until it is looked up: %s", upload_id, problem)

    async def _enter(self, owner: str, upload_id: str, limit: int) -> dict[str, float] | None:
        answer = await self._redis.run(
            _ENTER,
            [self._redis.keys.open_uploads(owner)],
            (upload_id, limit, int(_KEPT * 1000)),
        )
        if answer == 1:
            return None
        flat: list[bytes] = answer if isinstance(answer, list) else []
        return {
            member.decode("utf-8"): float(at) / 1000
            for member, at in zip(flat[::2], flat[1::2], strict=True)
        }

    async def _clear(self, owner: str, found: dict[str, float], look_up: LookUp) -> bool:
        """Takes some off that are unfinished no more; whether there are any."""
        key, now = self._redis.keys.open_uploads(owner), time.time()
        still_open: list[str] = []
        for some in batched(found.items(), _LOOKED_UP):
            answers = await asyncio.gather(*(look_up(upload_id) for upload_id, _ in some))
            closed = [
                upload_id
                for (upload_id, at), is_open in zip(some, answers, strict=True)
                if is_open is False or (is_open is None and now - at > _CREATING)
            ]
            still_open += [
                each for (each, _), is_open in zip(some, answers, strict=True) if is_open
            ]
            if closed:
                await self._redis.command("ZREM", key, *closed)
                break
        else:
            return False
        # Next time others are looked up first.
        for part in batched(still_open, _LOOKED_UP):
            pairs = [value for each in part for value in (int(now * 1000), each)]
            await self._redis.command("ZADD", key, "XX", *pairs)
        return True


def batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Tuples of so many items; the last may have fewer."""
    rest = iter(items)
    while some := tuple(islice(rest, size)):
        yield some
