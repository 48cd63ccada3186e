"""A process that acquires a lock and reports what happens to it: `python -m tests.locks.holder URL UPLOAD LEASE [JOURNAL]`.

It prints `held`, then `asked` at each request for the lock's release. While it holds the lock it adds its process id to
JOURNAL, a line each millisecond, as a writer adds bytes to a file. It takes orders on stdin: `release`, `held?` (answered by
True or False).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tusd_py.locks.redis import RedisLease, RedisLocks
from tusd_py.redis import RedisClient


def say(text: object) -> None:
    print(text, flush=True)


async def write(journal: Path, lease: RedisLease) -> None:
    with journal.open("a", buffering=1) as file:
        while True:
            await asyncio.sleep(0.001)
            if lease.is_held():
                file.write(f"{os.getpid()}\n")


async def main(url: str, upload_id: str, duration: str, journal: str = "") -> None:
    redis_client = RedisClient(url, timeout=20)
    await redis_client.start()
    locks = RedisLocks(redis_client, lease=float(duration))
    lease = await locks.acquire(upload_id, timeout=30)
    lease.on_requested(lambda: say("asked"))
    writing = asyncio.create_task(write(Path(journal or os.devnull), lease))
    say("held")
    while order := await asyncio.to_thread(sys.stdin.readline):
        if order == "held?\n":
            say(lease.is_held())
        else:
            await lease.release()
            say("released")
    writing.cancel()
    await locks.stop()
    await redis_client.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
