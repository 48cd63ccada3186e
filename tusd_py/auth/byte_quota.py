"""Limit the bytes that the uploads of an owner take: a reservation for each upload, counted in Redis.

Redis has a hash for each owner, with the bytes of each upload and their sum. A creation reserves its length, one of unknown
length what it has; removals give back. It is a hint: before a creation is refused, reservations are compared with the storage,
so one that a crash left counts for two minutes at most. They are rebuilt from the storage after Redis was emptied
(`service/quota_keeper.py`). Not for: the number of unfinished uploads (`quota.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import cast

from tusd_py.auth.quota import batched
from tusd_py.background import Work, spawn
from tusd_py.protocol import errors
from tusd_py.redis import RedisClient, RedisUnavailable, Script

logger = logging.getLogger(__name__)

_BATCH = 50
_CREATION_SECONDS = 120.0
"""Maximum time of a creation, hooks included; an upload that the store does not know counts until then."""
_WANTED_SECONDS = 400 * 86_400
_SUM, _OWNER = "\0sum", "\0owner"
"""Fields that are no ids."""

# ARGV: id, bytes, limit ('' for none), owner, now (ms). The value of an upload is its bytes and when it was reserved first.
# Returns whether it was reserved, and the sum of the others.
_RESERVE = Script(
    "reserve bytes",
    """\
local known = redis.call('HGET', KEYS[1], ARGV[1])
local old, since = 0, ARGV[5]
if known then
  old, since = string.match(known, '^(%d+) (%d+)$')
end
local sum = tonumber(redis.call('HGET', KEYS[1], '\\0sum') or '0')
local others = sum - tonumber(old)
if ARGV[3] ~= '' and tonumber(ARGV[2]) > tonumber(old) and others + tonumber(ARGV[2]) > tonumber(ARGV[3]) then
  return { 0, string.format('%.0f', others) }
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. since)
redis.call('HSET', KEYS[1], '\\0sum', string.format('%.0f', others + tonumber(ARGV[2])))
redis.call('HSET', KEYS[1], '\\0owner', ARGV[4])
return { 1, string.format('%.0f', others) }
""",
)

# ARGV: ids.
_RELEASE = Script(
    "give bytes back",
    """\
local sum = tonumber(redis.call('HGET', KEYS[1], '\\0sum') or '0')
for _, id in ipairs(ARGV) do
  local known = redis.call('HGET', KEYS[1], id)
  if known then
    sum = sum - tonumber(string.match(known, '^(%d+) '))
    redis.call('HDEL', KEYS[1], id)
  end
end
if sum == 0 and #redis.call('HVALS', KEYS[1]) <= 2 then
  redis.call('UNLINK', KEYS[1])
else
  redis.call('HSET', KEYS[1], '\\0sum', string.format('%.0f', sum))
end
""",
)

LookUp = Callable[[str], Awaitable[int | None]]
"""Returns the bytes that an upload takes; None for one that is unknown, -1 for one that is gone. Raises if it cannot tell."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """What an owner has: bytes and a number of uploads."""

    owner: str
    bytes: int
    uploads: int


class ByteQuotas:
    """The reservations of one instance. limit: bytes of each owner whose token or hook says nothing else; 0 for no limit.

    Attributes:
        is_on: Whether uploads are counted. Without any limit nobody asks Redis.
    """

    def __init__(self, redis: RedisClient, *, limit: int) -> None:
        self._redis = redis
        self._limit = limit
        self._background: set[asyncio.Task[None]] = set()
        self.is_on = bool(limit)

    def limit_of(self, wanted: int | None) -> int | None:
        """The limit of an owner, in bytes; None for none. wanted: by a token or a hook."""
        if wanted is not None:
            # From now on uploads are counted, here and, once they hear of it, by other servers.
            self.is_on = True
            return wanted
        return self._limit or None

    async def reserve(
        self, owner: str, upload_id: str, size: int, limit: int | None, look_up: LookUp
    ) -> None:
        """Reserve bytes for an upload, in place of those that it has. Raises a 413 with what is left, a 503 without Redis."""
        if not self.is_on:
            return
        # What was removed a moment ago is free.
        await self.settled()
        try:
            if (others := await self._reserve(owner, upload_id, size, limit)) is None:
                return
            await self._compare(owner, look_up, but=upload_id)
            others = await self._reserve(owner, upload_id, size, limit)
        except RedisUnavailable as problem:
            if limit is None:
                return
            logger.warning("the bytes of an owner cannot be counted: %s", problem)
            raise errors.unavailable() from None
        if others is not None:
            raise errors.quota_exceeded(max(0, (limit or 0) - others))

    async def _reserve(
        self, owner: str, upload_id: str, size: int, limit: int | None
    ) -> int | None:
        """Reserve bytes; return None, or the bytes of the other uploads if there is no room."""
        answer = await self._redis.run(
            _RESERVE,
            [self._redis.keys.quota(owner)],
            (
                upload_id,
                size,
                "" if limit is None else limit,
                _encoded(owner),
                int(time.time() * 1000),
            ),
        )
        done, others = cast("tuple[int, bytes]", answer)
        return None if done else int(others)

    async def _compare(self, owner: str, look_up: LookUp, *, but: str) -> None:
        """Correct the reservations of an owner by what the storage has."""
        now = time.time()
        for some in batched((await self._uploads(owner)).items(), _BATCH):
            sizes = await asyncio.gather(
                *(look_up(upload_id) for upload_id, _ in some), return_exceptions=True
            )
            gone: list[str] = []
            for (upload_id, (reserved, since)), size in zip(some, sizes, strict=True):
                if upload_id == but or isinstance(size, BaseException):
                    continue
                if size == -1 or (size is None and now - since > _CREATION_SECONDS):
                    gone.append(upload_id)
                elif size is not None and size != reserved:
                    await self._reserve(owner, upload_id, size, None)
            if gone:
                await self._redis.run(_RELEASE, [self._redis.keys.quota(owner)], gone)

    async def _uploads(self, owner: str) -> dict[str, tuple[int, float]]:
        """The uploads of an owner: bytes, and when they were reserved first, in seconds since the epoch."""
        flat = cast(
            "list[bytes]", await self._redis.command("HGETALL", self._redis.keys.quota(owner))
        )
        found: dict[str, tuple[int, float]] = {}
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            if not name.startswith(b"\0"):
                size, _, since = value.partition(b" ")
                found[name.decode()] = int(size), int(since) / 1000
        return found

    # What happens to uploads: no request waits for it

    def grew(self, owner: str, upload_id: str, size: int) -> None:
        """Count an upload with the bytes that it takes now."""
        if self.is_on:
            self._later(self.put(owner, upload_id, size))

    def removed(self, owner: str, upload_id: str) -> None:
        """Give the bytes of a removed upload back."""
        if self.is_on:
            self._later(self._release(owner, [upload_id]))

    async def put(self, owner: str, upload_id: str, size: int) -> None:
        """Count an upload whatever the limit is. Raises RedisUnavailable."""
        await self._reserve(owner, upload_id, size, None)

    async def _release(self, owner: str, ids: Sequence[str]) -> None:
        await self._redis.run(_RELEASE, [self._redis.keys.quota(owner)], ids)

    def _later(self, work: Work) -> None:
        async def attempt() -> None:
            try:
                await work
            except RedisUnavailable as problem:
                # Corrected before anybody is refused.
                logger.debug("quota: %s", problem)

        spawn(attempt(), "quota", self._background)

    async def settled(self) -> None:
        """Wait until what happened so far is counted."""
        if self._background:
            await asyncio.wait(list(self._background))

    # All owners

    async def want(self) -> bool:
        """Share whether uploads are counted; return whether all of them are known. Raises RedisUnavailable."""
        key = self._redis.keys.quotas_wanted()
        if self.is_on:
            await self._redis.command("SET", key, "building", "NX")
            await self._redis.command("EXPIRE", key, _WANTED_SECONDS)
        state = await self._redis.command("GET", key)
        self.is_on = state is not None
        return state in (None, b"whole")

    async def mark_whole(self) -> None:
        """Record that every upload is counted. Raises RedisUnavailable."""
        key = self._redis.keys.quotas_wanted()
        await self._redis.command("SET", key, "whole", "XX", "EX", _WANTED_SECONDS)

    async def counted(self, owners: Sequence[str]) -> list[int]:
        """The bytes that the uploads of these owners take. Raises RedisUnavailable."""
        sums = await asyncio.gather(
            *(self._redis.command("HGET", self._redis.keys.quota(owner), _SUM) for owner in owners)
        )
        return [int(cast("bytes | None", each) or 0) for each in sums]

    async def owners(self) -> list[Reserved]:
        """All owners that have uploads, those with the most bytes first. Raises RedisUnavailable."""
        found: list[Reserved] = []
        cursor = b"0"
        while True:
            answer = await self._redis.command(
                "SCAN", cursor, "MATCH", self._redis.keys.all_quotas(), "COUNT", 1000
            )
            cursor, keys = cast("tuple[bytes, list[bytes]]", answer)
            found += filter(None, await asyncio.gather(*map(self._reserved, keys)))
            if cursor == b"0":
                return sorted(set(found), key=lambda each: (-each.bytes, each.owner))

    async def _reserved(self, key: bytes) -> Reserved | None:
        flat = cast("list[bytes]", await self._redis.command("HGETALL", key))
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        owner, total = fields.pop(_OWNER.encode(), b""), fields.pop(_SUM.encode(), b"0")
        if not fields:
            return None
        return Reserved(owner.decode("utf-8", "surrogatepass"), int(total), len(fields))


def _encoded(text: str) -> bytes:
    # A string may have a lone surrogate, which UTF-8 cannot encode otherwise.
    return text.encode("utf-8", "surrogatepass")
