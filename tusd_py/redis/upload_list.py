"""The list of uploads for operators: sorted sets in Redis by time and state, words to search for, totals of owners.

A page of it costs what it shows, however many uploads there are. It is a hint: to show it, load each upload from the
storage. It is kept while an operators' API has marked it as wanted, by the same writer as the index of due uploads
(`due_index.py`), and rebuilt from the storage when Redis was emptied. Each update replaces what the list had of an upload, so
that it may be repeated.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

from tusd_py.redis import Part, RedisClient, Script
from tusd_py.redis.batches import batched

State = Literal["unfinished", "finished", "part"]
Order = Literal["newest", "oldest"]

_BATCH = 200
"""Uploads in one script call, which takes about two milliseconds; other commands wait meanwhile."""
_MARK_SECONDS = 7 * 86_400
_LONGEST_WORD = 64
"""Characters."""
_MOST_WORDS = 2
"""Places of a name at which a search may begin."""
_WORD = re.compile(r"[^\W_]+")
_PARTS = ("all", "unfinished", "finished", "part", "words", "facts", "bytes", "uploads", "open")

_UPDATE = Script(
    "list of uploads",
    """\
-- KEYS: mark, all, unfinished, finished, part, words, facts, bytes, uploads and open uploads by owner
-- ARGV: number of changes; for each: id, state ('' if it is gone), created, time in its state, bytes, owner, number of
-- words, words
local STATES = { unfinished = KEYS[3], finished = KEYS[4], part = KEYS[5] }
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('UNLINK', unpack(KEYS, 2))
  return 0
end

local function add(owner, bytes, uploads, open)
  redis.call('ZINCRBY', KEYS[8], bytes, owner)
  redis.call('ZINCRBY', KEYS[10], open, owner)
  if tonumber(redis.call('ZINCRBY', KEYS[9], uploads, owner)) <= 0 then
    for key = 8, 10 do
      redis.call('ZREM', KEYS[key], owner)
    end
  end
end

-- The words of an upload in the set: with its id, which is a word, too.
local function members(id, words)
  local found = { 'i' .. id }
  for _, word in ipairs(words) do
    table.insert(found, word .. '\\0' .. id)
  end
  return found
end

local function opens(state)
  return state == 'unfinished' and 1 or 0
end

local at = 2
for _ = 1, ARGV[1] do
  local id, state, created, since, bytes, owner, count = unpack(ARGV, at, at + 6)
  local words = { unpack(ARGV, at + 7, at + 6 + count) }
  at = at + 7 + count
  local known = redis.call('HGET', KEYS[7], id)
  if known then
    local old = cmsgpack.unpack(known)
    if old[1] ~= state then
      redis.call('ZREM', STATES[old[1]], id)
    end
    redis.call('ZREM', KEYS[6], unpack(members(id, old[4])))
    add(old[3], -old[2], -1, -opens(old[1]))
  end
  if state == '' then
    -- Also what was never whole.
    for key = 2, 5 do
      redis.call('ZREM', KEYS[key], id)
    end
    redis.call('HDEL', KEYS[7], id)
  else
    redis.call('ZADD', KEYS[2], created, id)
    redis.call('ZADD', STATES[state], since, id)
    for _, member in ipairs(members(id, words)) do
      redis.call('ZADD', KEYS[6], 0, member)
    end
    redis.call('HSET', KEYS[7], id, cmsgpack.pack({ state, tonumber(bytes), owner, words }))
    add(owner, bytes, 1, opens(state))
  end
end
return 1
""",
)

_PAGE = Script(
    "page of uploads",
    """\
-- KEYS: set. ARGV: ZRANK or ZREVRANK, id and score of the last one of the page before ('' for none), limit
local backwards = ARGV[1] == 'ZREVRANK'
local begin = 0
if ARGV[2] ~= '' then
  local rank = redis.call(ARGV[1], KEYS[1], ARGV[2])
  if rank then
    begin = rank + 1
  elseif backwards then
    begin = redis.call('ZCOUNT', KEYS[1], '(' .. ARGV[3], '+inf')
  else
    begin = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. ARGV[3])
  end
end
local range = { 'ZRANGE', KEYS[1], begin, begin + ARGV[4] - 1 }
if backwards then
  table.insert(range, 'REV')
end
table.insert(range, 'WITHSCORES')
return redis.call(unpack(range))
""",
)


class Listed(NamedTuple):
    """What the list has of an upload. Times are in seconds since the epoch.

    since: when it was finished; when it was created, until then. name: to search for; empty for none.
    """

    state: State
    created: float
    since: float
    bytes: int
    owner: str
    name: str


class Position(NamedTuple):
    """An upload's place in a set: its id and its time."""

    id: str
    time: float


@dataclass(frozen=True, slots=True)
class ListCounts:
    """Numbers of uploads. is_whole: whether the list has every upload."""

    known: int
    unfinished: int
    finished: int
    parts: int
    finished_hour: int
    finished_day: int
    is_whole: bool


@dataclass(frozen=True, slots=True)
class OwnerTotals:
    """What the uploads of one owner amount to. bytes: those of unfinished ones as of about a minute ago."""

    owner: str
    bytes: int
    uploads: int
    open: int


class UploadList:
    """The list in Redis. Every method raises RedisUnavailable."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._mark = redis.keys.listed
        self._key = redis.keys.listing

    # Keeping it

    async def update(self, changes: Mapping[str, Listed | None]) -> None:
        """Put uploads into the list; remove those that are gone (None). Does nothing while nobody wants the list."""
        keys = [self._mark, *map(self._key, _PARTS)]
        for some in batched(changes.items(), _BATCH):
            args: list[Part] = [len(some)]
            for upload_id, entry in some:
                args += _arguments(upload_id, entry)
            await self._redis.run(_UPDATE, keys, args)

    async def want(self) -> bool:
        """Mark the list as wanted for a week; return whether it has every upload."""
        await self._redis.command("SET", self._mark, "building", "NX")
        await self._redis.command("EXPIRE", self._mark, _MARK_SECONDS)
        return await self.state() == b"whole"

    async def mark(self, *, whole: bool) -> None:
        """Mark the list as having every upload or not, if it is wanted."""
        word = "whole" if whole else "building"
        await self._redis.command("SET", self._mark, word, "XX", "EX", _MARK_SECONDS)

    async def state(self) -> bytes | None:
        """Return the mark: `whole`, `building`, or None while nobody wants the list."""
        return cast("bytes | None", await self._redis.command("GET", self._mark))

    # Reading it

    async def counts(self, now: float) -> ListCounts:
        """Count the uploads in the list."""
        command, key = self._redis.command, self._key
        finished = key("finished")
        *found, state = await asyncio.gather(
            command("ZCARD", key("all")),
            command("ZCARD", key("unfinished")),
            command("ZCARD", finished),
            command("ZCARD", key("part")),
            command("ZCOUNT", finished, now - 3600, "+inf"),
            command("ZCOUNT", finished, now - 86_400, "+inf"),
            self.state(),
        )
        known, unfinished, ended, parts, in_hour, in_day = cast("list[int]", found)
        return ListCounts(
            known, unfinished, ended, parts, in_hour, in_day, is_whole=state == b"whole"
        )

    async def page(
        self, state: State | None, order: Order, after: Position | None, limit: int
    ) -> list[Position]:
        """Return uploads of a state (None for all) by the time of their creation or, of one that ended, of their finish.

        after: the last one of the page before.
        """
        return await self._page(self._key(state or "all"), order, after, limit)

    async def _page(
        self, key: str, order: Order, after: Position | None, limit: int
    ) -> list[Position]:
        answer = await self._redis.run(
            _PAGE,
            [key],
            (
                "ZREVRANK" if order == "newest" else "ZRANK",
                after.id if after else "",
                repr(after.time) if after else "",
                limit,
            ),
        )
        flat = cast("list[bytes]", answer)
        return [
            Position(member.decode(), float(score))
            for member, score in zip(flat[::2], flat[1::2], strict=True)
        ]

    async def total(self, state: State | None) -> int:
        """Count the uploads of a state."""
        return cast(int, await self._redis.command("ZCARD", self._key(state or "all")))

    async def due(self, now: float, after: Position | None, limit: int) -> list[Position]:
        """Return uploads that are due by the index of due ones, the longest due first. after: as of `page`."""
        found = await self._page(self._redis.keys.registry, "oldest", after, limit)
        return [each for each in found if each.time <= now]

    async def search(self, text: str, after: str, limit: int, *, kinds: str) -> list[str]:
        """Return words that begin with a text. `id_of` has the upload of each.

        Args:
            text: What to look for.
            after: The last word of the page before; empty for the first page.
            limit: How many to return at most.
            kinds: Of what: ids (i), file names (n), owners (o).
        """
        found: list[str] = []
        for kind in kinds:
            wanted = text if kind == "i" else text.casefold()[:_LONGEST_WORD]
            begin = f"{kind}{wanted}"
            if not wanted or kinds.find(after[:1]) > kinds.find(kind) or len(found) >= limit:
                continue
            first = f"({after}" if after[:1] == kind else f"[{begin}"
            answer = await self._redis.command(
                "ZRANGE", self._key("words"), _encoded(first), _encoded(f"[{begin}") + b"\xff",
                "BYLEX", "LIMIT", 0, limit - len(found),
            )  # fmt: skip
            found += [_decoded(word) for word in cast("list[bytes]", answer)]
        return found

    async def owners(self, begin: int, limit: int) -> list[OwnerTotals]:
        """Return owners by the bytes of their uploads, the largest first."""
        answer = await self._redis.command(
            "ZRANGE", self._key("bytes"), begin, begin + limit - 1, "REV", "WITHSCORES"
        )
        flat = cast("list[bytes]", answer)
        owners = flat[::2]
        found = await asyncio.gather(
            *(
                self._redis.command("ZSCORE", self._key(part), owner)
                for owner in owners
                for part in ("uploads", "open")
            )
        )
        numbers = cast("list[bytes | None]", found)
        return [
            OwnerTotals(_decoded(owner), *(int(float(each or 0)) for each in totals))
            for owner, *totals in zip(owners, flat[1::2], numbers[::2], numbers[1::2], strict=True)
        ]

    async def owners_total(self) -> int:
        """Count the owners."""
        return cast(int, await self._redis.command("ZCARD", self._key("bytes")))


def id_of(word: str) -> str:
    """Return the upload of a word that was found."""
    return word.rpartition("\0")[2] if "\0" in word else word[1:]


def _arguments(upload_id: str, entry: Listed | None) -> list[Part]:
    if entry is None:
        return [upload_id, "", 0, 0, 0, "", 0]
    words = _words(entry)
    numbers: list[Part] = [repr(entry.created), repr(entry.since), entry.bytes]
    return [upload_id, entry.state, *numbers, _encoded(entry.owner), len(words), *words]


def _words(entry: Listed) -> Sequence[bytes]:
    """What an upload can be found by besides its id: a kind and a text."""
    words = [f"o{entry.owner.casefold()[:_LONGEST_WORD]}"] if entry.owner else []
    name = entry.name.replace("\0", "").casefold()
    stem = name.rpartition(".")[0] or name
    begins = dict.fromkeys([0, *(found.start() for found in _WORD.finditer(stem))]) if name else {}
    words += [f"n{name[begin : begin + _LONGEST_WORD]}" for begin in list(begins)[:_MOST_WORDS]]
    return [_encoded(word) for word in words]


def _encoded(text: str) -> bytes:
    # A string may have a lone surrogate, which UTF-8 cannot encode otherwise.
    return text.encode("utf-8", "surrogatepass")


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")
