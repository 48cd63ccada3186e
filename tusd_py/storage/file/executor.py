"""Threads for blocking calls, such as disk operations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

_MAX_THREADS = 16

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A named pool of threads."""

    def __init__(self, name: str, most: int = _MAX_THREADS) -> None:
        self.executor = ThreadPoolExecutor(most, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread. A cancelled caller still waits for it to end."""
        loop = asyncio.get_running_loop()
        # Shielded: a cancelled request must not release its lock while its thread still writes.
        work = loop.run_in_executor(self.executor, lambda: function(*args, **kwargs))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            with suppress(Exception):
                await asyncio.wait([work])
            raise

    def close(self) -> None:
        """Wait for the running calls; queued ones are cancelled."""
        self.executor.shutdown(wait=True, cancel_futures=True)
