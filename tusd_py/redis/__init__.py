"""Shared state of processes and machines: a client of Redis (or Valkey), its indexes, and an embedded server.

Bytes, offsets and the existence of uploads are in the storage; with Redis emptied, uploads still resume. `docs/state.md`
lists the keys.
"""

from tusd_py.redis.client import Part, RedisClient, RedisUnavailable
from tusd_py.redis.keys import Keys
from tusd_py.redis.scripts import Script

__all__ = ["Keys", "Part", "Script", "RedisClient", "RedisUnavailable"]
