"""Limit the bytes that the uploads of an owner take: a reservation for each upload, counted in Redis.

Redis has a hash for each owner, with the bytes of each upload and their sum. A creation reserves its length; an upload of
unknown length has what it received, and reserves more before it receives more. Removals give back. It is a hint: before
anything is refused, reservations are compared with the storage, so that one that a crash left does not count for long. They are
rebuilt from the storage after Redis was emptied (`service/index_keepers.py`). Not for: the number of unfinished uploads
(`quota.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

from tusd_py.background import spawn
from tusd_py.protocol import errors
from tusd_py.redis import RedisClient, RedisUnavailable, Script
from tusd_py.redis.batches import batched

logger = logging.getLogger(__name__)

_BATCH = 50
_COMPARISON_PAUSE_SECONDS = 5.0
"""Least time between two comparisons of one owner, which read all its uploads from the storage."""
_LONGEST_COMPARISON_PAUSE_SECONDS = 60.0
_COMPARISON_SHARE = 20
"""The pause is this many times as long as the comparison took, between the shortest and the longest."""
_MOST_COMPARED = 10_000
"""Owners whose last comparison is remembered."""
_CREATION_SECONDS = 120.0
"""Maximum time of a creation, hooks included; an upload that the store does not know counts until then."""
_WANTED_SECONDS = 400 * 86_400
_SUM, _OWNER = "\0sum", "\0owner"
"""Fields that are no ids."""

# ARGV: id, bytes, limit ('' for none), owner, now (ms), "all", "some" or "new". The value of an upload is its bytes and when it
# was reserved first. "some" reserves what is left, and what the upload has already, if not all can be; "new" leaves an upload
# that is known as it is. Returns the bytes that were reserved, -1 for none, and the sum of the others.
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
local bytes = tonumber(ARGV[2])
if known and ARGV[6] == 'new' then
  return { old, string.format('%.0f', others) }
end
if ARGV[3] ~= '' and bytes > tonumber(old) and others + bytes > tonumber(ARGV[3]) then
  if ARGV[6] == 'all' then
    return { '-1', string.format('%.0f', others) }
  end
  bytes = math.max(tonumber(old), tonumber(ARGV[3]) - others)
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', bytes) .. ' ' .. since)
redis.call('HSET', KEYS[1], '\\0sum', string.format('%.0f', others + bytes))
redis.call('HSET', KEYS[1], '\\0owner', ARGV[4])
return { string.format('%.0f', bytes), string.format('%.0f', others) }
""",
)

# ARGV: id, the value that it had when the storage was asked, bytes.
_CORRECT = Script(
    "correct reserved bytes",
    """\
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known ~= ARGV[2] then
  return
end
local old, since = string.match(known, '^(%d+) (%d+)$')
local sum = tonumber(redis.call('HGET', KEYS[1], '\\0sum') or '0')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3] .. ' ' .. since)
redis.call('HSET', KEYS[1], '\\0sum', string.format('%.0f', sum - tonumber(old) + tonumber(ARGV[3])))
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
-- Before what follows: Redis does not roll back, and if it refuses that, the sum is right all the same.
redis.call('HSET', KEYS[1], '\\0sum', string.format('%.0f', sum))
if sum == 0 and redis.call('HLEN', KEYS[1]) <= 2 then
  redis.call('UNLINK', KEYS[1])
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


_Mode = Literal["all", "some", "new"]


class _Taken(NamedTuple):
    """An upload's bytes after a reservation, -1 if it was refused, and those of the owner's other uploads."""

    bytes: int
    others: int


@dataclass(slots=True)
class _Comparison:
    """The last comparison of an owner's reservations with the storage. Times of the monotonic clock."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    began: float = float("-inf")
    next_at: float = float("-inf")


class ByteQuotas:
    """The reservations of one instance. limit: bytes of each owner whose token or hook says nothing else; 0 for no limit.

    Attributes:
        is_on: Whether uploads are counted. Without any limit nobody asks Redis.
    """

    def __init__(self, redis: RedisClient, *, limit: int) -> None:
        self._redis = redis
        self._limit = limit
        self._background: set[asyncio.Task[None]] = set()
        self._comparisons: OrderedDict[str, _Comparison] = OrderedDict()
        self.is_on = bool(limit)

    def limit_of(self, wanted: int | None) -> int | None:
        """The limit of an owner, in bytes; None for none. wanted: by a token or a hook."""
        if wanted is not None:
            # From now on uploads are counted, here and, once they hear of it, by other servers.
            self.is_on = True
            return wanted
        return self._limit or None

    async def reserve(
        self,
        owner: str,
        upload_id: str,
        size: int,
        limit: int | None,
        look_up: LookUp,
        *,
        some: bool = False,
    ) -> int:
        """Reserve bytes for an upload, in place of those that it has. Returns the bytes that it may have.

        some: reserve what is left if not all can be. Otherwise raises a 413 with what is left. Raises a 503 without Redis.
        """
        if not self.is_on:
            return size
        # What was removed a moment ago is free.
        await self.settled()
        try:
            mode: _Mode = "some" if some else "all"
            taken = await self._reserve(owner, upload_id, size, limit, mode)
            # What is larger than the quota has no room, whatever is free.
            if taken.bytes < size and (some or limit is None or size <= limit):
                await self._compare_at_times(owner, look_up, but=upload_id)
                taken = await self._reserve(owner, upload_id, size, limit, mode)
        except RedisUnavailable as problem:
            if limit is None:
                return size
            logger.warning("the bytes of an owner cannot be counted: %s", problem)
            raise errors.unavailable() from None
        if taken.bytes < 0:
            raise errors.quota_exceeded(max(0, (limit or 0) - taken.others))
        return taken.bytes

    async def _reserve(
        self, owner: str, upload_id: str, size: int, limit: int | None, mode: _Mode = "all"
    ) -> _Taken:
        """Reserve bytes if there is room, or as the mode says."""
        answer = await self._redis.run(
            _RESERVE,
            [self._redis.keys.quota(owner)],
            (
                upload_id,
                size,
                "" if limit is None else limit,
                _encoded(owner),
                int(time.time() * 1000),
                mode,
            ),
        )
        reserved, others = cast("tuple[bytes, bytes]", answer)
        return _Taken(int(reserved), int(others))

    async def _compare_at_times(self, owner: str, look_up: LookUp, *, but: str) -> None:
        """Correct the reservations of an owner, unless that was done a moment ago: refusals must not keep the storage busy."""
        last = self._comparisons.get(owner)
        if last is None:
            last = self._comparisons[owner] = _Comparison()
            while len(self._comparisons) > _MOST_COMPARED:
                self._comparisons.popitem(last=False)
        asked = time.monotonic()
        async with last.lock:
            # A comparison that began meanwhile is recent enough.
            if last.began > asked or time.monotonic() < last.next_at:
                return
            last.began = began = time.monotonic()
            await self._compare(owner, look_up, but=but)
            ended = time.monotonic()
            pause = max(_COMPARISON_PAUSE_SECONDS, _COMPARISON_SHARE * (ended - began))
            last.next_at = ended + min(_LONGEST_COMPARISON_PAUSE_SECONDS, pause)

    async def _compare(self, owner: str, look_up: LookUp, *, but: str) -> None:
        """Correct the reservations of an owner by what the storage has."""
        key, now = self._redis.keys.quota(owner), time.time()
        async for uploads in self._uploads(key):
            sizes = await asyncio.gather(*map(look_up, uploads), return_exceptions=True)
            gone: list[str] = []
            for (upload_id, value), size in zip(uploads.items(), sizes, strict=True):
                if upload_id == but or isinstance(size, BaseException):
                    continue
                reserved, since = map(int, value.split(b" "))
                if size == -1 or (size is None and now - since / 1000 > _CREATION_SECONDS):
                    gone.append(upload_id)
                elif size is not None and size != reserved:
                    # Not if it has reserved more meanwhile.
                    await self._redis.run(_CORRECT, [key], (upload_id, value, size))
            if gone:
                await self._redis.run(_RELEASE, [key], gone)

    async def _uploads(self, key: str) -> AsyncIterator[dict[str, bytes]]:
        """The uploads of an owner with their values, some at a time."""
        cursor = b"0"
        while True:
            answer = await self._redis.command("HSCAN", key, cursor, "COUNT", _BATCH)
            cursor, flat = cast("tuple[bytes, list[bytes]]", answer)
            pairs = zip(flat[::2], flat[1::2], strict=True)
            found = [(name.decode(), value) for name, value in pairs if name[:1] != b"\0"]
            # Of a small hash all comes at once.
            for some in batched(found, _BATCH):
                yield dict(some)
            if cursor == b"0":
                return

    # What happens to uploads: no request waits for it

    def grew(self, owner: str, upload_id: str, size: int) -> None:
        """Count an upload with the bytes that it takes now."""
        if self.is_on:
            self._later(self._reserve(owner, upload_id, size, None))

    def removed(self, owner: str, upload_id: str) -> None:
        """Give the bytes of a removed upload back."""
        if self.is_on:
            self._later(self._release(owner, [upload_id]))

    async def put_unknown(self, owner: str, upload_id: str, size: int) -> None:
        """Count an upload unless it is counted: then it may have reserved more since its size was read.

        Raises RedisUnavailable.
        """
        await self._reserve(owner, upload_id, size, None, "new")

    async def _release(self, owner: str, ids: Sequence[str]) -> None:
        await self._redis.run(_RELEASE, [self._redis.keys.quota(owner)], ids)

    def _later(self, work: Coroutine[None, None, object]) -> None:
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
        key = self._redis.keys.quotas_wanted
        if self.is_on:
            await self._redis.command("SET", key, "building", "NX")
            await self._redis.command("EXPIRE", key, _WANTED_SECONDS)
        state = await self._redis.command("GET", key)
        # A Redis that was emptied since has no say in what this server was told.
        self.is_on = self.is_on or state is not None
        return state in (None, b"whole")

    async def is_whole(self) -> bool:
        """Whether the uploads of all owners are counted. Raises RedisUnavailable."""
        state = await self._redis.command("GET", self._redis.keys.quotas_wanted)
        return state == b"whole"

    async def mark_whole(self) -> None:
        """Record that every upload is counted. Raises RedisUnavailable."""
        key = self._redis.keys.quotas_wanted
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
                "SCAN", cursor, "MATCH", self._redis.keys.all_quotas, "COUNT", 1000
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
