"""What the servers of one instance receive now, and what they received in the last hour, for operators.

While an operator looks, each process writes once a second what it receives; what it wrote expires in seconds. Counts of the
last hour are added up in Redis over all processes, a few times a minute.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

from tusd_py.redis import Part, RedisClient, Script

WATCHED_SECONDS = 4
"""How long processes go on writing after an operator looked last."""
_FRESH_SECONDS = 5.0
"""Age after which what a process wrote counts no longer: it may have been killed."""
SLOT_SECONDS = 30
"""Length of a period of the last hour."""
SLOTS = 120
_HISTORY_SECONDS = 2 * 3600
_DAY_SECONDS = 3 * 86_400

COUNTED = ("bytes", "created", "finished", "refused", "duplicates")
"""What is counted, in each period of the last hour and each day."""

_ADD = Script(
    "history",
    """\
-- KEYS: period, day. ARGV: seconds to keep them, pairs of a name and how much to add
for position, key in ipairs(KEYS) do
  for at = 3, #ARGV, 2 do
    redis.call('HINCRBY', key, ARGV[at], ARGV[at + 1])
  end
  redis.call('EXPIRE', key, ARGV[position])
end
""",
)


class BodyDocument(TypedDict):
    """A body that is being received. rate: bytes a second; silent: seconds since the last byte; left: seconds, by the rate."""

    id: str
    server: str
    client: str
    owner: str
    name: str
    offset: int
    size: int | None
    rate: float
    silent: float


class ServerDocument(TypedDict):
    """What a process receives. at: when it wrote that, in seconds since the epoch. bodies: not all if there are very many."""

    server: str
    at: float
    receiving: int
    connections: int
    rate: float
    bodies: list[BodyDocument]


class LiveBoard:
    """Where processes write what they receive. Every method raises RedisUnavailable."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._keys = redis.keys

    async def watch(self) -> None:
        """Let all processes write for some seconds."""
        await self._redis.command("SET", self._keys.live_watched, "1", "EX", WATCHED_SECONDS)

    async def is_watched(self) -> tuple[bool, bool]:
        """Return whether an operator looks, and whether an operators' API wants the list of uploads."""
        watched, listed = await asyncio.gather(
            self._redis.command("GET", self._keys.live_watched),
            self._redis.command("GET", self._keys.listed),
        )
        return watched is not None, listed is not None

    async def write(self, document: ServerDocument) -> None:
        """Replace what a process receives."""
        key = self._keys.live_bodies
        await asyncio.gather(
            self._redis.command("HSET", key, document["server"], json.dumps(document)),
            self._redis.command("EXPIRE", key, WATCHED_SECONDS),
        )

    async def read(self, but: str = "") -> list[ServerDocument]:
        """Return what processes receive, except the one called `but`."""
        answer = await self._redis.command("HGETALL", self._keys.live_bodies)
        flat = cast("list[bytes]", answer)
        found: list[ServerDocument] = [
            json.loads(value)
            for name, value in zip(flat[::2], flat[1::2], strict=True)
            if name.decode("utf-8", "replace") != but
        ]
        now = time.time()
        return [each for each in found if abs(now - each["at"]) < _FRESH_SECONDS]

    # The last hour

    async def count(self, now: float, added: Mapping[str, int]) -> None:
        """Add to the counts of this period and this day."""
        args: list[Part] = [_HISTORY_SECONDS, _DAY_SECONDS]
        for name, number in added.items():
            args += (name, number)
        keys = [
            self._keys.live_history(str(int(now // SLOT_SECONDS))),
            self._keys.live_history(_day(now)),
        ]
        await self._redis.run(_ADD, keys, args)

    async def hour(self, now: float, *, slots: int = SLOTS) -> list[dict[str, int]]:
        """Return the counts of the last periods, the oldest first; the last one is not over yet."""
        last = int(now // SLOT_SECONDS)
        names = [str(slot) for slot in range(last - slots + 1, last + 1)]
        return await self._counts(names)

    async def day(self, now: float) -> dict[str, int]:
        """Return the counts of this day (UTC)."""
        return (await self._counts([_day(now)]))[0]

    async def _counts(self, names: Sequence[str]) -> list[dict[str, int]]:
        answers = await asyncio.gather(
            *(self._redis.command("HGETALL", self._keys.live_history(name)) for name in names)
        )
        return [_numbers(cast("list[bytes]", answer)) for answer in answers]


def _numbers(flat: list[bytes]) -> dict[str, int]:
    found = {
        name.decode("ascii", "replace"): int(number)
        for name, number in zip(flat[::2], flat[1::2], strict=True)
    }
    return {name: found.get(name, 0) for name in COUNTED}


def _day(now: float) -> str:
    return time.strftime("%Y%m%d", time.gmtime(now))
