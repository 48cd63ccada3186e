"""Which upload is due when: a sorted set in Redis, so that the sweep every ten minutes costs what is due and not what is known.

It is a hint and never the truth: whatever it says about an upload is asked of the storage again before anything happens. It
may lack uploads (Redis was emptied, a server was killed within a second of a creation) and have some that are gone; the sweep
of the whole storage mends both. Not for: deciding what has expired.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, cast

from tusd_py.redis import Part, RedisClient, RedisUnavailable, Script

logger = logging.getLogger(__name__)

SweepKind = Literal["due", "all"]
"""due: what the registry knows to be due. all: the whole storage."""

_BATCH = 1000
"""Uploads in one script; Lua takes no more than some thousands of arguments at once."""
_FLUSH = 1.0
"""Seconds for which changes are collected before Redis is told."""
_REPEAT = 60.0
"""Seconds in which an upload that grows is told once."""
_MOST_OWED = 200_000
"""Changes that are kept while Redis is away. Beyond them the registry is told to be incomplete, and is built again."""

_UPDATE = Script(
    "registry update",
    """
-- ARGV: how many follow as time and id; those; ids that are to be forgotten
local pairs = 2 * ARGV[1]
if pairs > 0 then
  redis.call('ZADD', KEYS[1], unpack(ARGV, 2, pairs + 1))
end
if #ARGV > pairs + 1 then
  redis.call('ZREM', KEYS[1], unpack(ARGV, pairs + 2))
end
""",
)

_RENEW = Script(
    "sweep lock renew",
    """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""",
)

_RELEASE = Script(
    "sweep lock release",
    """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
""",
)


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """What a sweep did. began, ended: seconds since the epoch; the rest are counts."""

    kind: SweepKind
    began: float
    ended: float
    seen: int
    expired: int
    finished: int
    remains: int
    failed: int


@dataclass(frozen=True, slots=True)
class RegistryCounts:
    """How many uploads are known, and how many of them are due."""

    known: int
    due: int
    is_whole: bool


class DueIndex:
    """The registry in one Redis. Every method raises RedisUnavailable when Redis cannot be asked."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._keys = redis.keys

    async def update(self, due: Mapping[str, float], gone: Collection[str] = ()) -> None:
        """Uploads are due at these times (seconds since the epoch), others are not to be looked at any more."""
        items, ids = list(due.items()), list(gone)
        while items or ids:
            some, items = items[:_BATCH], items[_BATCH:]
            others, ids = ids[:_BATCH], ids[_BATCH:]
            args: list[Part] = [len(some)]
            for upload_id, when in some:
                args += (when, upload_id)
            await self._redis.run(_UPDATE, [self._keys.registry()], [*args, *others])

    async def due(self, now: float, limit: int) -> list[str]:
        """At most so many ids of uploads that are due, those first that have been so for the longest time."""
        answer = await self._redis.command(
            "ZRANGEBYSCORE", self._keys.registry(), "-inf", now, "LIMIT", 0, limit
        )
        return [member.decode() for member in cast("list[bytes]", answer)]

    async def counts(self, now: float) -> RegistryCounts:
        """How much it knows."""
        key = self._keys.registry()
        known = await self._redis.command("ZCARD", key)
        due = await self._redis.command("ZCOUNT", key, "-inf", now)
        return RegistryCounts(cast(int, known), cast(int, due), await self.is_whole())

    async def is_whole(self) -> bool:
        """Whether the whole storage was walked through since Redis was last empty."""
        return await self._redis.command("GET", self._keys.registry_whole()) is not None

    async def mark_whole(self, *, whole: bool) -> None:
        """It knows every upload now, or may lack some."""
        key = self._keys.registry_whole()
        await (self._redis.command("SET", key, "1") if whole else self._redis.command("DEL", key))

    # The sweeps

    async def lock_sweep(self, token: str, *, lease: float) -> bool:
        """Whether no other sweep is running; then this one is, for `lease` seconds unless renewed."""
        key = self._keys.sweep_lock()
        answer = await self._redis.command("SET", key, token, "NX", "PX", round(lease * 1000))
        return answer is not None

    async def renew_sweep(self, token: str, *, lease: float) -> bool:
        """Whether this sweep is still the one that is running."""
        key = self._keys.sweep_lock()
        return bool(await self._redis.run(_RENEW, [key], [token, round(lease * 1000)]))

    async def unlock_sweep(self, token: str) -> None:
        """This sweep has ended."""
        await self._redis.run(_RELEASE, [self._keys.sweep_lock()], [token])

    async def record_sweep(self, record: SweepRecord) -> None:
        """Remembers the last sweep of its kind."""
        await self._redis.command(
            "HSET", self._keys.sweeps(), record.kind, json.dumps(asdict(record))
        )

    async def sweeps(self) -> list[SweepRecord]:
        """The last sweep of each kind, the latest first."""
        answer = await self._redis.command("HVALS", self._keys.sweeps())
        records = [SweepRecord(**json.loads(value)) for value in cast("list[bytes]", answer)]
        return sorted(records, key=lambda record: -record.ended)


class DueIndexWriter:
    """Tells the registry what one process's uploads do; see `DueMarks`.

    Nothing waits for it: changes are collected and go to Redis in one command a second, however many uploads there are.
    """

    def __init__(self, registry: DueIndex) -> None:
        self._registry = registry
        self._owed: dict[str, float | None] = {}
        self._recent: dict[str, float] = {}
        self._is_complete = True

    def mark(self, upload_id: str, due: float | None, /) -> None:
        """See `DueMarks`. An upload of the last minute is not sent again, unless it is gone or due earlier."""
        if due is None:
            self._recent.pop(upload_id, None)
        elif self._recent.get(upload_id, math.inf) <= due:
            return
        else:
            self._recent[upload_id] = due
        if len(self._owed) >= _MOST_OWED:
            self._owed.clear()
            self._is_complete = False
        self._owed[upload_id] = due

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        loop = asyncio.get_running_loop()
        forget_at = loop.time() + _REPEAT
        while True:
            await asyncio.sleep(_FLUSH)
            await self.flush()
            if loop.time() >= forget_at:
                self._recent.clear()
                forget_at = loop.time() + _REPEAT

    async def flush(self) -> None:
        """Tells Redis what it was not told yet; if it is away, later."""
        owed, self._owed = self._owed, {}
        due = {upload_id: when for upload_id, when in owed.items() if when is not None}
        gone = [upload_id for upload_id, when in owed.items() if when is None]
        try:
            if not self._is_complete:
                await self._registry.mark_whole(whole=False)
                self._is_complete = True
            await self._registry.update(due, gone)
        except RedisUnavailable as problem:
            logger.debug("the registry was not told of %d uploads: %s", len(owed), problem)
            self._owed = owed | self._owed
        except Exception:
            # Not owed for ever: should one of these be what fails, no others would ever be told.
            self._is_complete = False
            raise
