"""The index of uploads by the time at which they are due: a sorted set in Redis, so that a sweep costs only what is due.

It is a hint: a sweep reads each upload from the storage before it acts. The index may lack uploads (Redis was emptied, a server
was killed within a second of a creation) and have removed ones; the sweep of the whole storage corrects both.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, cast

from redis.lock import Lock

from tusd_py.redis import Part, RedisClient, RedisUnavailable, Script
from tusd_py.redis.batches import batched
from tusd_py.redis.upload_list import Listed, UploadList

logger = logging.getLogger(__name__)

SweepKind = Literal["due", "all"]
"""due: uploads that are due according to the index. all: the whole storage."""
OpenState = Literal["unfinished", "part"]
"""States of uploads that are counted: those to which bytes may come, and parts that are to be joined."""

_SCORES: Mapping[OpenState, int] = {"unfinished": 0, "part": 1}

_BATCH = 1000
"""Uploads in one command."""
_FLUSH_SECONDS = 1.0
"""Interval at which changes are sent."""
_REPEAT_SECONDS = 60.0
"""Interval in which a growing upload is sent once."""
_AHEAD_SECONDS = 60.0
"""By how much the clocks of machines may differ."""
_MAX_PENDING = 200_000
"""Changes kept while Redis is unavailable. With more, the index is marked as incomplete and rebuilt."""

_RENEW = Script("sweep lock renew", Lock.LUA_REACQUIRE_SCRIPT)
_RELEASE = Script("sweep lock release", Lock.LUA_RELEASE_SCRIPT)
# KEYS: the mark of a complete index, that of the data. ARGV: the mark that the data have to have.
_MARK_WHOLE = Script(
    "index is complete",
    """\
if redis.call('GET', KEYS[2]) == ARGV[1] then
  redis.call('SET', KEYS[1], '1')
end
""",
)


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """Result of a sweep. began, ended: seconds since the epoch; the others are counts of uploads."""

    kind: SweepKind
    began: float
    ended: float
    seen: int
    expired: int
    finished: int
    remains: int
    failed: int

    def is_ahead(self, now: float) -> bool:
        """Whether it ended in the future: by a clock that was set back since, so that it does not tell how long ago that is."""
        return self.ended > now + _AHEAD_SECONDS


@dataclass(frozen=True, slots=True)
class RegistryCounts:
    """Number of indexed uploads, of those that are due, and of those in each state. is_whole: whether the index is complete."""

    known: int
    due: int
    open: Mapping[OpenState, int]
    is_whole: bool


class DueIndex:
    """The index in Redis. Every method raises RedisUnavailable. uploads: the list of uploads for operators, kept with it."""

    def __init__(self, redis: RedisClient) -> None:
        self.uploads = UploadList(redis)
        self._redis = redis
        self._keys = redis.keys

    async def update(
        self,
        due: Mapping[str, float],
        gone: Collection[str] = (),
        states: Mapping[str, OpenState | None] | None = None,
    ) -> None:
        """Set when uploads are due (seconds since the epoch), and remove others.

        states: of uploads that are open now, whether they are ever due or not; None for one that is not.
        """
        removed = dict.fromkeys(gone)
        scores = {
            upload_id: None if state is None else _SCORES[state]
            for upload_id, state in (states or {}).items()
        }
        await self._update(self._keys.open_states, {**removed, **scores})
        await self._update(self._keys.registry, {**due, **removed})

    async def _update(self, key: str, scores: Mapping[str, float | None]) -> None:
        """Set the scores of members of a sorted set, and remove those that have none (None)."""
        for some in batched(scores.items(), _BATCH):
            added: list[Part] = []
            for member, score in some:
                if score is not None:
                    added += (score, member)
            removed = [member for member, score in some if score is None]
            if added:
                await self._redis.command("ZADD", key, *added)
            if removed:
                await self._redis.command("ZREM", key, *removed)

    async def due(self, now: float, limit: int) -> list[str]:
        """Return at most `limit` ids of uploads that are due, the longest due first."""
        answer = await self._redis.command(
            "ZRANGEBYSCORE", self._keys.registry, "-inf", now, "LIMIT", 0, limit
        )
        return [member.decode() for member in cast("list[bytes]", answer)]

    async def counts(self, now: float) -> RegistryCounts:
        """Count the uploads in the index."""
        key = self._keys.registry
        known = await self._redis.command("ZCARD", key)
        due = await self._redis.command("ZCOUNT", key, "-inf", now)
        states = self._keys.open_states
        found = {
            state: cast(int, await self._redis.command("ZCOUNT", states, score, score))
            for state, score in _SCORES.items()
        }
        return RegistryCounts(cast(int, known), cast(int, due), found, await self.is_whole())

    async def is_whole(self) -> bool:
        """Return whether the index is complete: the whole storage was swept since Redis was last empty."""
        return await self._redis.command("GET", self._keys.registry_whole) is not None

    async def data_mark(self) -> bytes:
        """Return a mark of what is in Redis, which is another one after it was emptied."""
        key = self._keys.registry_data
        await self._redis.command("SET", key, secrets.token_hex(8), "NX")
        return cast("bytes | None", await self._redis.command("GET", key)) or b""

    async def mark_whole(self, data_mark: bytes) -> None:
        """Mark the index as complete, unless Redis was emptied since `data_mark` was asked for."""
        keys = [self._keys.registry_whole, self._keys.registry_data]
        await self._redis.run(_MARK_WHOLE, keys, [data_mark])

    async def mark_incomplete(self) -> None:
        """Mark the index as incomplete."""
        await self._redis.command("DEL", self._keys.registry_whole)

    # Sweeps

    async def lock_sweep(self, token: str, *, lease: float) -> bool:
        """Try to acquire the lease of the running sweep, for `lease` seconds unless renewed."""
        key = self._keys.sweep_lock
        answer = await self._redis.command("SET", key, token, "NX", "PX", round(lease * 1000))
        return answer is not None

    async def renew_sweep(self, token: str, *, lease: float) -> bool:
        """Renew the lease; return False if it was lost."""
        key = self._keys.sweep_lock
        return bool(await self._redis.run(_RENEW, [key], [token, round(lease * 1000)]))

    async def unlock_sweep(self, token: str) -> None:
        """Release the lease, if it is still held."""
        await self._redis.run(_RELEASE, [self._keys.sweep_lock], [token])

    async def mark_without_workers(self, *, seconds: float) -> None:
        """Record for some seconds that servers need no worker; 0 for servers that need one."""
        key = self._keys.without_workers
        if seconds:
            await self._redis.command("SET", key, 1, "PX", round(seconds * 1000))
        else:
            await self._redis.command("DEL", key)

    async def record_sweep(self, record: SweepRecord) -> None:
        """Store the result of the last sweep of its kind."""
        await self._redis.command(
            "HSET", self._keys.sweeps, record.kind, json.dumps(asdict(record))
        )

    async def sweeps(self) -> list[SweepRecord]:
        """Return the results of the last sweep of each kind, the latest first."""
        answer = await self._redis.command("HVALS", self._keys.sweeps)
        records = [SweepRecord(**json.loads(value)) for value in cast("list[bytes]", answer)]
        return sorted(records, key=lambda record: -record.ended)


class DueIndexWriter:
    """Sends the changes of one process's uploads to the index, and to the list of uploads; see `DueMarks`.

    No request waits for it: changes are collected and sent once per second, however many uploads there are.

    Attributes:
        lists: Whether an operators' API lists uploads, so that changes of the list are wanted.
    """

    def __init__(self, registry: DueIndex) -> None:
        self._registry = registry
        self.lists = False
        self._pending: dict[str, float | None] = {}
        self._changed: dict[str, Listed | None] = {}
        self._states: dict[str, OpenState | None] = {}
        self._recent: dict[str, float] = {}
        self._is_complete = True

    def mark(self, upload_id: str, due: float | None, /) -> bool:
        """See `DueMarks`. Returns False for an upload of the last minute: it is sent again only if gone or due earlier."""
        if due is None:
            self._recent.pop(upload_id, None)
        elif self._recent.get(upload_id, math.inf) <= due:
            return False
        else:
            self._recent[upload_id] = due
        if len(self._pending) >= _MAX_PENDING:
            self._pending.clear()
            self._changed.clear()
            self._states.clear()
            self._is_complete = False
        self._pending[upload_id] = due
        return True

    def count(self, upload_id: str, state: OpenState | None, /) -> None:
        """Count an upload that was marked just now among the open ones of a state, or no more (None)."""
        self._states[upload_id] = state

    def list(self, upload_id: str, entry: Listed | None, /) -> None:
        """Put an upload that was marked just now into the list of uploads, or remove it (None)."""
        if self.lists:
            self._changed[upload_id] = entry

    async def run(self) -> None:
        """Send changes until cancelled."""
        loop = asyncio.get_running_loop()
        forget_at = loop.time() + _REPEAT_SECONDS
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            await self.flush()
            if loop.time() >= forget_at:
                self._recent.clear()
                forget_at = loop.time() + _REPEAT_SECONDS

    async def flush(self) -> None:
        """Send the pending changes; keep them if Redis is unavailable, or this is cancelled, as at the end of the server."""
        pending, self._pending = self._pending, {}
        due = {upload_id: when for upload_id, when in pending.items() if when is not None}
        gone = [upload_id for upload_id, when in pending.items() if when is None]
        changed, self._changed = self._changed, {}
        states, self._states = self._states, {}
        is_done = False
        try:
            if not self._is_complete:
                await self._registry.mark_incomplete()
                await self._registry.uploads.mark(whole=False)
                self._is_complete = True
            await self._registry.update(due, gone, states)
            await self._registry.uploads.update(changed)
            is_done = True
        except RedisUnavailable as problem:
            logger.debug("the index of due uploads lacks %d changes: %s", len(pending), problem)
        except Exception:
            # Dropped, as one invalid change would otherwise block all others forever.
            is_done = True
            self._is_complete = False
            raise
        finally:
            if not is_done:
                # Later changes of the same uploads count.
                self._pending = {**pending, **self._pending}
                self._changed = {**changed, **self._changed}
                self._states = {**states, **self._states}
