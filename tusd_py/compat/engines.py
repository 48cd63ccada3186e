"""Services for directories, each started by the first request that needs it and stopped with its event loop.

Whoever includes a router need not know of lifespans. Where the application's lifespan is run, it ends what was begun; where it
is not (an application mounted in another, tests without a context), the end of the loop does. Not for: what requests mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from weakref import WeakKeyDictionary

from tusd_py.web.app import TusApp

logger = logging.getLogger(__name__)

MOST_READY = 64
"""Number of open directories above which unused ones are closed."""


class Engine:
    """The service of one directory. users: number of requests that use it. make: returns the component, not started."""

    def __init__(self, make: Callable[[], TusApp]) -> None:
        self.users = 0
        self._make = make
        self._tus: TusApp | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> TusApp:
        """The component, begun if it was not yet. Raises StorageError, EmbeddedRedisError, HookError, ValueError."""
        async with self._starting:
            if self._tus is None:
                tus = self._make()
                try:
                    await tus.start()
                except BaseException:
                    with suppress(RuntimeError):
                        await tus.stop()
                    raise
                self._tus = tus
            return self._tus

    async def stop(self) -> None:
        """Stop the service and release the directory."""
        async with self._starting:
            tus, self._tus = self._tus, None
            if tus is not None:
                await tus.stop()


class Engines:
    """The open directories of one event loop, shared by all routers."""

    def __init__(self) -> None:
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._end: AsyncGenerator[None, None] | None = None

    @classmethod
    def here(cls) -> Engines:
        """Return the directories of the running loop."""
        return _by_loop.setdefault(asyncio.get_running_loop(), cls())

    @asynccontextmanager
    async def using(self, directory: str, make: Callable[[], TusApp]) -> AsyncIterator[TusApp]:
        """Yield the service of a directory (an absolute path), which is not stopped during the block.

        make: returns it, not started, if there is none yet. Raises what `Engine.start` raises.
        """
        if self._end is None:
            self._end = self._until_the_end()
            await anext(self._end)
        engine = self._engines.get(directory)
        if engine is None:
            engine = self._engines[directory] = Engine(make)
        self._engines.move_to_end(directory)
        engine.users += 1
        try:
            yield await engine.start()
        finally:
            engine.users -= 1
            await self._retire()

    async def _retire(self) -> None:
        if len(self._engines) <= MOST_READY:
            return
        directory = next((name for name, each in self._engines.items() if not each.users), None)
        if directory is not None:
            await self._engines[directory].stop()
            # Who came in the meantime has begun it anew.
            if not self._engines[directory].users:
                del self._engines[directory]

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        """Wait until closed: by `stop`, or by the event loop, which closes asynchronous generators when it ends."""
        try:
            yield
        finally:
            engines, self._engines = self._engines, OrderedDict()
            for directory, engine in engines.items():
                try:
                    await engine.stop()
                except Exception:
                    logger.exception("the uploads of %s did not end cleanly", directory)

    async def stop(self) -> None:
        """Stop all services; later requests start them again."""
        end, self._end = self._end, None
        if end is not None:
            await end.aclose()


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Engines] = WeakKeyDictionary()


@asynccontextmanager
async def lifespan(_app: object = None) -> AsyncIterator[None]:
    """Stop with the application the services that its requests started."""
    try:
        yield
    finally:
        await Engines.here().stop()
