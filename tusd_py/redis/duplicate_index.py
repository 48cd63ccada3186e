"""The index of uploads by fingerprint, which finds duplicates.

Each fingerprint is a key whose value is the list of uploads that have it, oldest first: usually one, several if clients forced
an upload or Redis was unavailable at its creation. Each change is one script, so that of simultaneous requests to any number of
servers exactly one reserves the fingerprint. `tusd_hooks` computes fingerprints and answers clients.

The value is JSON: upload, owner, final, state, token, created, completed, expires (milliseconds since the epoch, by Redis's
clock), and deferred, if the length was not known at the creation. The key expires with the record that expires last.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict, cast

from tusd_py.redis import RedisClient, Script

CAPACITY = 8
"""Most uploads remembered for one fingerprint, so that forced uploads cannot grow a list without bounds."""

_PAGE = 500

RecordState = Literal["pending", "complete", "ending"]
"""pending: being uploaded. complete: finished. ending: its removal was requested."""


class _Document(TypedDict):
    upload: str
    owner: str
    final: bool
    state: RecordState
    token: str
    created: int
    completed: int | None
    expires: int
    deferred: NotRequired[bool]


@dataclass(frozen=True, slots=True)
class Claim:
    """An upload that requests a fingerprint. token: unique to this attempt to create it, as ids may be reused."""

    upload: str
    owner: str
    is_final: bool
    token: str


@dataclass(frozen=True, slots=True)
class Record:
    """An upload that has a fingerprint. Times are in seconds since the epoch; completed is None until it is.

    deferred: its length was not known when it was created, and it is not complete.
    """

    claim: Claim
    state: RecordState
    created: float
    completed: float | None
    expires: float
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class Holder:
    """The current holder of a requested fingerprint. age: seconds since it was reserved."""

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

-- Where there are too many, the oldest goes, but none that is complete for one that is not, and one of deferred length last.
local function rank(record)
  return record.deferred and 2 or record.state == 'complete' and 1 or 0
end

local function add(records, record)
  table.insert(records, record)
  if #records > 0 + ARGV[5] then
    local victim = 1
    for position, each in ipairs(records) do
      if rank(each) < rank(records[victim]) then
        victim = position
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
-- ARGV, further: force, deferred ('1'), rivals ('all' or 'deferred'), how many reservations are gone, those as token and
-- time, tokens to pass by
local gone, passed = {}, {}
for position = 11, #ARGV do
  if position < 11 + ARGV[10] then
    gone[ARGV[position]] = true
  else
    passed[ARGV[position]] = true
  end
end

local now = clock()
local records, holder = {}, nil
for _, record in ipairs(read(now)) do
  if record.state == 'complete' or not gone[record.token .. '@' .. string.format('%.0f', record.created)] then
    table.insert(records, record)
    if not passed[record.token] and (ARGV[9] == 'all' or record.deferred) then
      holder = record
    end
  end
end
if holder and ARGV[7] ~= '1' then
  return {cjson.encode(holder), now - holder.created}
end
local mine = claimed(now, 'pending')
if ARGV[8] == '1' then
  mine.deferred = true
end
add(records, mine)
write(records)
return {}
""",
)

_CONFIRM = Script(
    "duplicates.confirm",
    _SHARED
    + """
-- ARGV: upload, token
local records, found = read(clock()), 0
for _, record in ipairs(records) do
  if record.upload == ARGV[1] and record.token == ARGV[2] then
    -- Who looked for the upload before it was there must look again.
    record.created, found = clock(), 1
  end
end
if found == 1 then
  write(records)
end
return found
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
-- ARGV, further: '1' if only a record that is there is to be marked
local known = mine and 1 or 0
if (mine and mine.state == 'complete') or (not mine and ARGV[7] == '1') then
  return known
end
if not mine then
  mine = claimed(now, 'complete')
  add(records, mine)
end
mine.state, mine.completed, mine.expires = 'complete', now, now + ARGV[6]
mine.deferred = nil
write(records)
return known
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
    """The index in Redis. Every method raises RedisUnavailable."""

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
        deferred: bool = False,
        rivals: Literal["all", "deferred"] = "all",
        gone: Collection[Record] = (),
        passed: Collection[str] = (),
    ) -> Holder | None:
        """Reserve a fingerprint, or return its holder, the newest of several.

        Args:
            fingerprint: in hexadecimal.
            claim: the upload to reserve it for.
            lasts: seconds until a pending reservation expires.
            force: reserve it beside any other holder.
            deferred: the upload's length is not known.
            rivals: which holders refuse the reservation: all, or those whose length is not known.
            gone: records whose uploads do not exist; those that were confirmed or completed since are kept.
            passed: tokens of records to ignore.
        """
        answer = await self._run(
            _RESERVE,
            fingerprint,
            *_arguments(claim, lasts),
            int(force),
            int(deferred),
            rivals,
            len(gone),
            *(f"{each.claim.token}@{round(each.created * 1000)}" for each in gone),
            *passed,
        )
        if not isinstance(answer, list) or not answer:
            return None
        encoded, age = answer
        return Holder(_record(cast(_Document, _loads(encoded))), int(age) / 1000)

    async def confirm(self, fingerprint: str, claim: Claim) -> bool:
        """Begin the time of a reservation anew, as its upload exists now. Return False if it was given to another upload."""
        return bool(await self._run(_CONFIRM, fingerprint, claim.upload, claim.token))

    async def complete(
        self, fingerprint: str, claim: Claim, *, lasts: float, if_known: bool = False
    ) -> bool:
        """Mark an upload as complete, and remember it for `lasts` seconds from the first such call.

        Return whether the upload was recorded under the fingerprint. if_known: do nothing if it was not, as after an operator
        removed that.
        """
        return bool(
            await self._run(_COMPLETE, fingerprint, *_arguments(claim, lasts), int(if_known))
        )

    async def end(self, fingerprint: str, upload_id: str) -> None:
        """Mark an upload as ending, so that later checks look whether it still exists."""
        await self._run(_END, fingerprint, upload_id)

    async def release(self, fingerprint: str, upload_id: str, *, token: str = "") -> bool:
        """Remove one upload, or one attempt to create it. Return False if it is not in the index."""
        return bool(await self._run(_RELEASE, fingerprint, upload_id, token))

    # For operators

    async def records(self, fingerprint: str) -> list[Record]:
        """Return the uploads that have a fingerprint, oldest first."""
        return _records(await self._redis.command("GET", self._key(fingerprint)))

    async def scan(self) -> AsyncIterator[tuple[str, list[Record]]]:
        """Yield every fingerprint and its uploads, in no order. Entries that change meanwhile may come twice."""
        cursor = "0"
        while True:
            cursor, found = await self.scan_some(cursor)
            for fingerprint, records in found:
                yield fingerprint, records
            if cursor == "0":
                return

    async def scan_some(self, cursor: str) -> tuple[str, list[tuple[str, list[Record]]]]:
        """Return some fingerprints and their uploads, perhaps none, and the next cursor. The first and the last one is "0"."""
        pattern = self._redis.keys.all_duplicates
        answer = await self._redis.command("SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE)
        following, keys = cast("tuple[bytes, list[bytes]]", answer)
        values = await self._redis.command("MGET", *keys) if keys else []
        found = [
            (key[key.rindex(b"{") + 1 : -1].decode(), records)
            for key, value in zip(keys, cast("list[bytes | None]", values), strict=True)
            if (records := _records(value))
        ]
        return following.decode(), found

    async def _run(self, script: Script, fingerprint: str, *args: bytes | str | int) -> object:
        return await self._redis.run(script, [self._key(fingerprint)], args)


def _arguments(claim: Claim, lasts: float) -> tuple[bytes | str | int, ...]:
    # A string may have a lone surrogate, which UTF-8 cannot encode otherwise.
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
    # Expired records stay in the list until its next change.
    return [record for record in found if record.expires > time.time()]


def _record(document: _Document) -> Record:
    completed = document["completed"]
    return Record(
        claim=Claim(document["upload"], document["owner"], document["final"], document["token"]),
        state=document["state"],
        created=document["created"] / 1000,
        completed=None if completed is None else completed / 1000,
        expires=document["expires"] / 1000,
        deferred=document.get("deferred", False),
    )
