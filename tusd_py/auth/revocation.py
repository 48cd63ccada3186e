"""Tokens and uploads that were taken back, known to every server within a second.

Redis has the list; each process has a copy that it renews several times a second, so that no request waits for Redis and
none is decided otherwise while Redis is away. What a process knows it never forgets before its time, and tells a Redis that was
emptied. Not for: what follows from a revocation (`authority`).
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
from tusd_py.background import keep_running
from tusd_py.state import Script, State, StateUnavailable

logger = logging.getLogger(__name__)

_POLL = 0.4
_KEPT = 400 * 86_400.0
"""Seconds. Longer than any token lives; an upload that goes on for longer than that has to be revoked again."""

# Redis' clock alone decides the order, so that servers' clocks may differ. It is rounded up, and to microseconds as tokens are
# dated: rounded down, it would lie before a token of the same millisecond, which would outlive its revocation.
# KEYS: all, version. ARGV: member, new version, how long it is kept (ms), when it was ('' for now, ms with fractions)
_REVOKE = Script(
    "revoke",
    """\
local time = redis.call('TIME')
local now = time[1] * 1000 + (time[2] + 1) / 1000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[3]))
local at = ARGV[4] == '' and string.format('%.3f', now) or ARGV[4]
redis.call('ZADD', KEYS[1], 'GT', at, ARGV[1])
redis.call('SET', KEYS[2], ARGV[2])
return at
""",
)

# KEYS: all, version. ARGV: the version that is known. Nothing where that is still so.
_NEWS = Script(
    "news of revocations",
    """\
local version = redis.call('GET', KEYS[2]) or ''
if version == ARGV[1] then
  return false
end
return { version, redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES') }
""",
)


class Revocations:
    """What was revoked, as this process knows it. on_change: called whenever more became known."""

    def __init__(self, state: State, *, on_change: Callable[[], None]) -> None:
        self._state = state
        self._on_change = on_change
        self._known: dict[str, float] = {}
        self._version = secrets.token_hex(8)
        self._loaded = False
        self._poller: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether the list was read at least once: before that nobody can say what was revoked."""
        return self._loaded

    def owner_since(self, owner: str) -> float | None:
        """See `authority.Revoked`."""
        return self._known.get(f"o:{owner}")

    def has_upload(self, upload_id: str) -> bool:
        """See `authority.Revoked`."""
        return f"u:{upload_id}" in self._known

    async def start(self) -> None:
        """Reads the list, if it can be had, and goes on doing so."""
        await self._look()
        if not self._loaded:
            logs.event(
                logger,
                logging.WARNING,
                "revocations",
                message="Redis does not tell what was revoked; requests are refused until it does",
            )
        self._poller = keep_running(self._poll, "revocations")

    async def stop(self) -> None:
        """Reads no more."""
        if self._poller is not None:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller

    async def revoke_upload(self, upload_id: str) -> None:
        """Takes back an upload and all its tokens, for good. Raises StateUnavailable."""
        await self._revoke(f"u:{upload_id}")

    async def revoke_owner(self, owner: str) -> None:
        """Takes back all tokens of an owner that were issued until now. Raises StateUnavailable."""
        await self._revoke(f"o:{owner}")

    async def _revoke(self, member: str) -> None:
        self._learn({member: await self._write(member, "")})

    async def _write(self, member: str, at: str) -> float:
        keys = self._state.keys
        answer = await self._state.run(
            _REVOKE,
            [keys.revoked(), keys.revoked_version()],
            (member, secrets.token_hex(8), int(_KEPT * 1000), at),
        )
        return _seconds(answer)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_POLL)
            await self._look()

    async def _look(self) -> None:
        """Takes note of what is new. While Redis is away, nothing is."""
        keys = self._state.keys
        with suppress(StateUnavailable):
            answer = await self._state.run(
                _NEWS, [keys.revoked(), keys.revoked_version()], (self._version,)
            )
            match answer:
                case [bytes(version), [*flat]]:
                    members = [_text(member) for member in flat[::2]]
                    found = dict(zip(members, map(_seconds, flat[1::2]), strict=True))
                    await self._take(found, version.decode())

    async def _take(self, found: dict[str, float], version: str) -> None:
        oldest = time.time() - _KEPT
        for member, at in list(self._known.items()):
            if at < oldest:
                del self._known[member]
            elif member not in found:
                await self._write(member, f"{at * 1000:.3f}")
        self._learn(found)
        self._version, self._loaded = version, True

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
    raise StateUnavailable(f"{milliseconds!r} is no time")
