"""Limit the number of unfinished uploads of an owner, if the token has such a limit.

Redis has a set of upload ids for each such owner, never larger than the limit, to which a creation adds its id. Ids are not
removed when uploads finish or are removed: only when the set is full are its ids looked up in the store, until some are found
that are not unfinished any more. So all are looked up before a creation is refused, a crash leaves no id that counts for ever,
and no finish waits for Redis. If Redis is emptied, earlier uploads do not count any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tusd_py.protocol import errors
from tusd_py.redis import RedisClient, RedisUnavailable, Script
from tusd_py.redis.batches import batched

logger = logging.getLogger(__name__)

_LOOK_UP_BATCH = 50
"""Ids that are looked up together, the least recently looked up first, until a batch frees a place."""
_CREATION_SECONDS = 120.0
"""Maximum time of a creation, hooks included; an id that the store does not know counts until then."""
_TTL_SECONDS = 400 * 86_400.0

# KEYS: open. ARGV: id, limit, time to keep the set (ms). Returns 1, or all ids with their times if the set is full.
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
"""Returns whether an upload is unfinished; None if it is unknown."""


class OpenUploads:
    """Counts unfinished uploads: `enter` before a creation, `leave` if it fails."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def enter(self, owner: str, upload_id: str, limit: int, look_up: LookUp) -> None:
        """Count an upload that is about to be created. Raises a 429 if there are `limit` already, a 503 without Redis."""
        try:
            # Other creations may take the places that are freed; each round frees more, or finds none.
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
        """Stop counting an upload whose creation failed."""
        try:
            await self._redis.command("ZREM", self._redis.keys.open_uploads(owner), upload_id)
        except RedisUnavailable as problem:
            logger.warning("upload %s is counted until it is looked up: %s", upload_id, problem)

    async def _enter(self, owner: str, upload_id: str, limit: int) -> dict[str, float] | None:
        answer = await self._redis.run(
            _ENTER,
            [self._redis.keys.open_uploads(owner)],
            (upload_id, limit, int(_TTL_SECONDS * 1000)),
        )
        if answer == 1:
            return None
        flat: list[bytes] = answer if isinstance(answer, list) else []
        return {
            member.decode("utf-8"): float(at) / 1000
            for member, at in zip(flat[::2], flat[1::2], strict=True)
        }

    async def _clear(self, owner: str, found: dict[str, float], look_up: LookUp) -> bool:
        """Remove ids that are not unfinished any more; return whether there were any."""
        key, now = self._redis.keys.open_uploads(owner), time.time()
        still_open: list[str] = []
        for some in batched(found.items(), _LOOK_UP_BATCH):
            answers = await asyncio.gather(*(look_up(upload_id) for upload_id, _ in some))
            closed = [
                upload_id
                for (upload_id, at), is_open in zip(some, answers, strict=True)
                if is_open is False or (is_open is None and now - at > _CREATION_SECONDS)
            ]
            still_open += [
                each for (each, _), is_open in zip(some, answers, strict=True) if is_open
            ]
            if closed:
                await self._redis.command("ZREM", key, *closed)
                break
        else:
            return False
        # So that others are looked up first the next time.
        for part in batched(still_open, _LOOK_UP_BATCH):
            pairs = [value for each in part for value in (int(now * 1000), each)]
            await self._redis.command("ZADD", key, "XX", *pairs)
        return True
