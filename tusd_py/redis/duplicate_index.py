"""Which upload has which fingerprint: the index by which duplicates are found.

A fingerprint is a key; its value is the list of the uploads that have it, oldest first: one as a rule, several where their
clients insisted, or where Redis was away when they were created. Each change is one script, so that of any number of servers
that ask at the same instant one gets the fingerprint. Not for: what makes a fingerprint, and what is said to whom.

The value is JSON that people can read: upload, owner, final, state, token, created, completed, expires (milliseconds since
the epoch, by the clock of Redis). It ends with the record that lasts longest.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, cast

from tusd_py.redis import RedisClient, Script

CAPACITY = 8
"""Uploads that are remembered for one fingerprint. Nobody can make a list grow without bounds by insisting."""

_PAGE = 500

RecordState = Literal["pending", "complete", "ending"]
"""pending: being uploaded. complete: finished. ending: being removed, at least so its client wanted."""


class _Document(TypedDict):
    upload: str
    owner: str
    final: bool
    state: RecordState
    token: str
    created: int
    completed: int | None
    expires: int


@dataclass(frozen=True, slots=True)
class Claim:
    """An upload that asks for a fingerprint. token: unique to this attempt to create it; ids may be used again."""

    upload: str
    owner: str
    is_final: bool
    token: str


@dataclass(frozen=True, slots=True)
class Record:
    """An upload that has a fingerprint. Times in seconds since the epoch; completed is None before."""

    claim: Claim
    state: RecordState
    created: float
    completed: float | None
    expires: float


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a fingerprint that was asked for. age: seconds since it was reserved."""

    record: Record
    age: float


_SHARED = """
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function read(now)
  local records = {}
  for _, record in ipairs(cjson.decode(redis.call('GET', KEYS[1]) or '[]')) do
    if record.expires > now then
      table.insert(records, record)
    end
  end
  return records
end

local function write(records)
  local last = 0
  for _, record in ipairs(records) do
    last = math.max(last, record.expires)
  end
  if last == 0 then
    redis.call('DEL', KEYS[1])
  else
    redis.call('SET', KEYS[1], cjson.encode(records), 'PXAT', string.format('%.0f', last))
  end
end

-- Where there are too many, the oldest goes, but none that is complete for one that is not.
local function add(records, record)
  table.insert(records, record)
  if #records > 0 + ARGV[5] then
    local victim = 1
    for position, each in ipairs(records) do
      if each.state ~= 'complete' then
        victim = position
        break
      end
    end
    table.remove(records, victim)
  end
end

-- ARGV: upload, owner, final, token, capacity, milliseconds
local function claimed(now, state)
  return {
    upload = ARGV[1], owner = ARGV[2], final = ARGV[3] == '1', token = ARGV[4], state = state,
    created = now, completed = cjson.null, expires = now + ARGV[6],
  }
end
"""

_RESERVE = Script(
    "duplicates.reserve",
    _SHARED
    + """
-- ARGV, further: force, how many tokens are gone, those, tokens to pass by
local gone, passed = {}, {}
for position = 9, #ARGV do
  if position < 9 + ARGV[8] then
    gone[ARGV[position]] = true
  else
    passed[ARGV[position]] = true
  end
end

local now = clock()
local records, holder = {}, nil
for _, record in ipairs(read(now)) do
  if record.state == 'complete' or not gone[record.token] then
    table.insert(records, record)
    if not passed[record.token] then
      holder = record
    end
  end
end
if holder and ARGV[7] ~= '1' then
  return {cjson.encode(holder), now - holder.created}
end
add(records, claimed(now, 'pending'))
write(records)
return {}
""",
)

_COMPLETE = Script(
    "duplicates.complete",
    _SHARED
    + """
local now = clock()
local records, mine = read(now), nil
for _, record in ipairs(records) do
  if record.upload == ARGV[1] then
    mine = record
  end
end
if mine and mine.state == 'complete' then
  return
end
if not mine then
  mine = claimed(now, 'complete')
  add(records, mine)
end
mine.state, mine.completed, mine.expires = 'complete', now, now + ARGV[6]
write(records)
""",
)

_END = Script(
    "duplicates.end",
    _SHARED
    + """
local records, found = read(clock()), false
for _, record in ipairs(records) do
  if record.upload == ARGV[1] then
    record.state, found = 'ending', true
  end
end
if found then
  write(records)
end
""",
)

_RELEASE = Script(
    "duplicates.release",
    _SHARED
    + """
-- ARGV: upload, token ('' for any)
local kept, removed = {}, 0
for _, record in ipairs(read(clock())) do
  if record.upload == ARGV[1] and (ARGV[2] == '' or record.token == ARGV[2]) then
    removed = removed + 1
  else
    table.insert(kept, record)
  end
end
if removed > 0 then
  write(kept)
end
return removed
""",
)


class DuplicateIndex:
    """The index in one Redis. Every method raises RedisUnavailable when Redis cannot be asked."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._key = redis.keys.duplicate

    async def reserve(
        self,
        fingerprint: str,
        claim: Claim,
        *,
        lasts: float,
        force: bool = False,
        gone: Collection[str] = (),
        passed: Collection[str] = (),
    ) -> Holder | None:
        """Gives the fingerprint to `claim`, for `lasts` seconds as long as it is pending; or tells who has it.

        The newest of several holders is told. force: whoever has it keeps it too. gone, passed: tokens of records that turned
        out to be of no upload any more, and that shall not be in the way; a record that was completed or taken over since is
        neither.
        """
        answer = await self._run(
            _RESERVE,
            fingerprint,
            *_arguments(claim, lasts),
            int(force),
            len(gone),
            *gone,
            *passed,
        )
        if not isinstance(answer, list) or not answer:
            return None
        encoded, age = answer
        return Holder(_record(cast(_Document, _loads(encoded))), int(age) / 1000)

    async def complete(self, fingerprint: str, claim: Claim, *, lasts: float) -> None:
        """Its upload is finished: remembers that for `lasts` seconds from the first time that it is told."""
        await self._run(_COMPLETE, fingerprint, *_arguments(claim, lasts))

    async def end(self, fingerprint: str, upload_id: str) -> None:
        """The upload is about to be removed: from now on whoever wants to know has to look whether it is still there."""
        await self._run(_END, fingerprint, upload_id)

    async def release(self, fingerprint: str, upload_id: str, *, token: str = "") -> bool:
        """Forgets one upload, or one attempt to create it, and no other. False if it was not known."""
        return bool(await self._run(_RELEASE, fingerprint, upload_id, token))

    async def release_each(self, uploads: Sequence[tuple[str, str]]) -> None:
        """`release` for some dozens of uploads in one go, each with its fingerprint before its id."""
        calls = [([self._key(fingerprint)], (each, "")) for fingerprint, each in uploads]
        await self._redis.run_each(_RELEASE, calls)

    # For operators

    async def records(self, fingerprint: str) -> list[Record]:
        """The uploads that have a fingerprint, oldest first."""
        return _records(await self._redis.command("GET", self._key(fingerprint)))

    async def scan(self) -> AsyncIterator[tuple[str, list[Record]]]:
        """Every fingerprint and who has it, a page at a time, in no order. What changes meanwhile may come twice."""
        pattern = self._redis.keys.all_duplicates()
        cursor = b"0"
        while True:
            answer = await self._redis.command("SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE)
            cursor, keys = cast("tuple[bytes, list[bytes]]", answer)
            values = await self._redis.command("MGET", *keys) if keys else []
            for key, value in zip(keys, cast("list[bytes | None]", values), strict=True):
                if records := _records(value):
                    yield key[key.rindex(b"{") + 1 : -1].decode(), records
            if cursor == b"0":
                return

    async def _run(self, script: Script, fingerprint: str, *args: bytes | str | int) -> object:
        return await self._redis.run(script, [self._key(fingerprint)], args)


def _arguments(claim: Claim, lasts: float) -> tuple[bytes | str | int, ...]:
    # A string may hold half a surrogate pair, which has no bytes otherwise.
    owner = claim.owner.encode("utf-8", "surrogatepass")
    final = int(claim.is_final)
    return claim.upload, owner, final, claim.token, CAPACITY, int(lasts * 1000)


def _loads(encoded: bytes) -> object:
    value: object = json.loads(encoded.decode("utf-8", "surrogatepass"))
    return value


def _records(value: object) -> list[Record]:
    if not isinstance(value, bytes):
        return []
    found = [_record(document) for document in cast("list[_Document]", _loads(value))]
    # One that has ended is only left out of the list when that is next changed.
    return [record for record in found if record.expires > time.time()]


def _record(document: _Document) -> Record:
    completed = document["completed"]
    return Record(
        claim=Claim(document["upload"], document["owner"], document["final"], document["token"]),
        state=document["state"],
        created=document["created"] / 1000,
        completed=None if completed is None else completed / 1000,
        expires=document["expires"] / 1000,
    )
