"""What several processes and machines have to agree on: Redis (or Valkey), and an embedded server
where nobody gave us one.

Bytes, offsets and the existence of uploads are not kept here but in the storage; with all of this
emptied, uploads still resume. `docs/state.md` lists what is kept.
"""

from tusd_py.redis.client import Part, RedisClient, RedisUnavailable
from tusd_py.redis.keys import Keys
from tusd_py.redis.scripts import Script

__all__ = ["Keys", "Part", "Script", "RedisClient", "RedisUnavailable"]
