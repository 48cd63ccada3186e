"""A process that adds to a number in a file, under a lock: `python -m tests.locks.contender URL FILE ADDITIONS`.

It reads the number, takes its time, and writes the next one: two holders at a time would lose additions.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from tusd_py.locks.redis import RedisLocks
from tusd_py.redis import RedisClient

TASKS = 4


async def add(locks: RedisLocks, file: Path, additions: int) -> None:
    for _ in range(additions):
        lease = await locks.acquire("number", timeout=60)
        number = int(file.read_text())
        await asyncio.sleep(random.random() * 0.001)
        assert lease.is_held()
        file.write_text(str(number + 1))
        await lease.release()


async def main(url: str, file: str, additions: str) -> None:
    redis_client = RedisClient(url, timeout=20)
    await redis_client.start()
    locks = RedisLocks(redis_client, lease=60)
    each = int(additions) // TASKS
    await asyncio.gather(*(add(locks, Path(file), each) for _ in range(TASKS)))
    await locks.stop()
    await redis_client.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
