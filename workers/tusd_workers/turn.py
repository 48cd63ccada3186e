"""Whose turn it is to tell the events of an upload: one worker's at a time, by a key in Redis that goes when the worker dies.

Blocking; every method raises RedisError.
"""

from __future__ import annotations

import secrets

from redis import Redis

_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

_END = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
"""


class Turn:
    """A turn to be had. lease: seconds after which it is over unless renewed."""

    def __init__(self, connection: Redis, key: str, *, lease: float) -> None:
        self._connection = connection
        self._key = key
        self._lease = round(lease * 1000)
        self._token = secrets.token_hex(8)

    def begin(self) -> bool:
        """Whether it is ours now."""
        return bool(self._connection.set(self._key, self._token, nx=True, px=self._lease))

    def renew(self) -> bool:
        """Whether it still is."""
        return bool(self._connection.eval(_RENEW, 1, self._key, self._token, self._lease))

    def end(self) -> None:
        """Others may have it."""
        self._connection.eval(_END, 1, self._key, self._token)
