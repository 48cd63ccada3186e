"""Revocations of tokens and uploads, which reach every server within a second.

Redis has the list. Each process polls it several times a second into a copy, so that no request waits for Redis, and decisions
stay the same while it is unavailable. A process keeps the revocations that it knows until they are too old to matter, and
writes them back to a Redis that was emptied. Not for: deciding on access (`policy.py`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

from tusd_py import logs
from tusd_py.auth.policy import Revoked
from tusd_py.background import cancel, keep_running
from tusd_py.redis import RedisClient, RedisUnavailable, Script

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.4
_PRUNE_SECONDS = 3600.0
"""Interval of removing revocations that are too old to matter."""
_LOG_LENGTH = 4000
"""Revocations in the log of changes; a process that missed more than these reads the whole list."""

# The time is that of Redis, so that servers' clocks may differ. It is rounded up to a microsecond, the resolution of tokens:
# rounded down, it could be before a token of the same millisecond, which would survive its revocation.
#
# A version is GENERATION.NUMBER.RANDOM. The log has the members that changed in a generation, each with its last number, so
# that a process reads only those after the number that it knows. It reads the whole list if that is not enough: another
# generation (Redis was emptied, or an older version of this program wrote), a number that is not higher (failover), a log that
# was cut. The random part distinguishes two changes with the same number.
# KEYS: all, version, log. ARGV: member, a new generation, time to keep it (ms), time of revocation ('' for now, ms with
# fractions), length of the log
_REVOKE = Script(
    "revoke",
    """\
local time = redis.call('TIME')
local now = time[1] * 1000 + (time[2] + 1) / 1000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[3]))
local at = ARGV[4] == '' and string.format('%.3f', now) or ARGV[4]
redis.call('ZADD', KEYS[1], 'GT', at, ARGV[1])
local generation, number = string.match(redis.call('GET', KEYS[2]) or '', '^(%x+)%.(%d+)%.')
if not generation then
  generation, number = ARGV[2], 0
  redis.call('DEL', KEYS[3])
end
number = string.format('%.0f', number + 1)
redis.call('ZADD', KEYS[3], number, ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - ARGV[5])
redis.call('SET', KEYS[2], generation .. '.' .. number .. '.' .. ARGV[2])
return at
""",
)

# KEYS: all, version, log. ARGV: the known version, length of the log. Returns false if the version is unchanged; else the
# version, whether the list is whole, and members with their times. A Redis without a version may have been emptied since the
# first revocation.
_READ_NEW = Script(
    "news of revocations",
    """\
local version = redis.call('GET', KEYS[2]) or ''
if version ~= '' and version == ARGV[1] then
  return false
end
local pattern = '^(%x+)%.(%d+)%.'
local generation, number = string.match(version, pattern)
local known, seen = string.match(ARGV[1], pattern)
if generation and generation == known and tonumber(number) > tonumber(seen) then
  local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
  local is_whole = redis.call('ZCARD', KEYS[3]) < tonumber(ARGV[2])
  if first[2] and (is_whole or tonumber(first[2]) <= seen + 1) then
    local members, pairs = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. seen, '+inf'), {}
    for _, member in ipairs(members) do
      local at = redis.call('ZSCORE', KEYS[1], member)
      if at then
        table.insert(pairs, member)
        table.insert(pairs, at)
      end
    end
    return { version, 0, pairs }
  end
end
return { version, 1, redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES') }
""",
)


class Revocations(Revoked):
    """This process's copy of the revocations. on_change: called after new ones were read. ttl: seconds to keep one.

    Attributes:
        ready: Whether the list was read at least once; before that no token can be accepted.
    """

    def __init__(self, redis: RedisClient, *, on_change: Callable[[], None], ttl: float) -> None:
        self._redis = redis
        self._ttl = ttl
        self._on_change = on_change
        self._known: dict[str, float] = {}
        self._version = secrets.token_hex(8)
        self.ready = False
        self._poller: asyncio.Task[None] | None = None

    def owner_since(self, owner: str) -> float | None:
        return self._known.get(f"o:{owner}")

    def has_upload(self, upload_id: str) -> bool:
        return f"u:{upload_id}" in self._known

    async def start(self) -> None:
        """Read the list if Redis is available, and start polling."""
        await self._refresh()
        if not self.ready:
            logs.event(
                logger,
                logging.WARNING,
                "revocations",
                message="Redis is unavailable, so revocations are unknown; requests are refused until they can be read",
            )
        self._poller = keep_running(self._poll, "revocations")

    async def stop(self) -> None:
        """Stop polling."""
        await cancel(self._poller)

    async def revoke_upload(self, upload_id: str) -> None:
        """Revoke an upload and all its tokens, for good. Raises RedisUnavailable."""
        await self._revoke(f"u:{upload_id}")

    async def revoke_owner(self, owner: str) -> None:
        """Revoke all tokens of an owner that were issued until now. Raises RedisUnavailable."""
        await self._revoke(f"o:{owner}")

    async def _revoke(self, member: str) -> None:
        self._learn({member: await self._write(member, "")})

    def _keys(self) -> list[str]:
        keys = self._redis.keys
        return [keys.revoked, keys.revoked_version, keys.revoked_log]

    async def _write(self, member: str, at: str) -> float:
        answer = await self._redis.run(
            _REVOKE,
            self._keys(),
            (member, secrets.token_hex(8), int(self._ttl * 1000), at, _LOG_LENGTH),
        )
        return _seconds(answer)

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        prune_at = loop.time() + _PRUNE_SECONDS
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            await self._refresh()
            if loop.time() >= prune_at:
                prune_at = loop.time() + _PRUNE_SECONDS
                await self._prune()

    async def _refresh(self) -> None:
        """Read new revocations; none while Redis is unavailable."""
        with suppress(RedisUnavailable):
            answer = await self._redis.run(_READ_NEW, self._keys(), (self._version, _LOG_LENGTH))
            match answer:
                case [bytes(version), int(is_all), [*flat]]:
                    members = [_text(member) for member in flat[::2]]
                    found = dict(zip(members, map(_seconds, flat[1::2]), strict=True))
                    if is_all:
                        await self._restore_missing(found)
                    self._learn(found)
                    self._version, self.ready = version.decode(), True

    async def _restore_missing(self, found: dict[str, float]) -> None:
        """Write the revocations that a Redis which was emptied lacks. found: all that it has."""
        self._forget_old()
        for member, at in list(self._known.items()):
            if member not in found:
                await self._write(member, f"{at * 1000:.3f}")

    async def _prune(self) -> None:
        """Remove revocations older than any token, here and in Redis."""
        self._forget_old()
        oldest = (time.time() - self._ttl) * 1000
        with suppress(RedisUnavailable):
            await self._redis.command(
                "ZREMRANGEBYSCORE", self._redis.keys.revoked, "-inf", f"{oldest:.0f}"
            )

    def _forget_old(self) -> None:
        oldest = time.time() - self._ttl
        self._known = {member: at for member, at in self._known.items() if at >= oldest}

    def _learn(self, found: dict[str, float]) -> None:
        news = {
            member: at for member, at in found.items() if at > self._known.get(member, -math.inf)
        }
        self._known |= news
        if news:
            self._on_change()


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _seconds(milliseconds: object) -> float:
    if isinstance(milliseconds, bytes | int | float):
        return float(milliseconds) / 1000
    raise RedisUnavailable(f"{milliseconds!r} is no time")
