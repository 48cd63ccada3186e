"""The threads of a store: for what would hold up the event loop, such as a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

_MOST = 16

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """Some threads of a name."""

    def __init__(self, name: str, most: int = _MOST) -> None:
        self.executor = ThreadPoolExecutor(most, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a function returns or raises, called in a thread; whoever is cancelled waits for its end all the same."""
        loop = asyncio.get_running_loop()
        # Shielded: a request that is cancelled must not leave the lock while its thread still writes.
        work = loop.run_in_executor(self.executor, lambda: function(*args, **kwargs))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            with suppress(Exception):
                await asyncio.wait([work])
            raise

    def close(self) -> None:
        """Returns when all that was begun has ended; what was not begun yet is not done."""
        self.executor.shutdown(wait=True, cancel_futures=True)
