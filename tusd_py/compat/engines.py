"""Services for directories, each started by the first request that needs it and stopped with its event loop.

An application that includes a router need not run its lifespan: where it does not (mounted in another, tests), the end of the
event loop stops the services. Not for: what requests mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from tusd_py.web.app import TusApp

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_READY = 64
"""Number of open directories above which unused ones are closed."""


class Engine:
    """The service of one directory. users: number of requests that use or stop it. make: returns the component, not started."""

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


class PerLoop(Generic[T]):
    """One of something for each event loop that uses it. lasts: yields it, and ends it when closed."""

    def __init__(self, lasts: Callable[[], AsyncGenerator[T, None]]) -> None:
        self._lasts = lasts
        self._begun: dict[
            asyncio.AbstractEventLoop, asyncio.Task[tuple[T, AsyncGenerator[T, None]]]
        ] = {}

    async def get(self) -> T:
        """Return that of the running loop, started if necessary. The loop closes the generator when it ends."""
        loop = asyncio.get_running_loop()
        task = self._begun.get(loop)
        if task is None or (task.done() and task.exception() is not None):
            # A task refers to its loop, which would never be freed.
            for ended in [each for each in list(self._begun) if each.is_closed()]:
                self._begun.pop(ended, None)
            task = self._begun[loop] = loop.create_task(self._begin())
        return (await asyncio.shield(task))[0]

    async def _begin(self) -> tuple[T, AsyncGenerator[T, None]]:
        lasting = self._lasts()
        return await anext(lasting), lasting

    async def stop(self) -> None:
        """End that of the running loop now, if there is one."""
        task = self._begun.pop(asyncio.get_running_loop(), None)
        if task is not None:
            _, lasting = await task
            await lasting.aclose()


class Engines:
    """The open directories of one event loop, shared by all routers."""

    def __init__(self) -> None:
        self._engines: OrderedDict[str, Engine] = OrderedDict()

    @asynccontextmanager
    async def using(self, directory: str, make: Callable[[], TusApp]) -> AsyncIterator[TusApp]:
        """Yield the service of a directory (an absolute path), which is not stopped during the block.

        make: returns it, not started, if there is none yet. Raises what `Engine.start` raises.
        """
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
        """Stop the service that has been unused for longest, if there are too many."""
        if len(self._engines) <= MOST_READY:
            return
        unused = next((each for each in self._engines.items() if not each[1].users), None)
        if unused is None:
            return
        directory, engine = unused
        # Its stop is a use: no other request stops it too, and one that needs it waits for the stop and starts it again.
        engine.users += 1
        try:
            await _stop(directory, engine)
        finally:
            engine.users -= 1
            if not engine.users and self._engines.get(directory) is engine:
                del self._engines[directory]

    async def stop(self) -> None:
        """Stop all services."""
        engines, self._engines = self._engines, OrderedDict()
        for directory, engine in engines.items():
            await _stop(directory, engine)


async def _stop(directory: str, engine: Engine) -> None:
    """Stop a service. Does not raise: what fails is logged."""
    try:
        await engine.stop()
    except Exception:
        logger.exception("the uploads of %s did not end cleanly", directory)


async def _opened() -> AsyncGenerator[Engines, None]:
    engines = Engines()
    try:
        yield engines
    finally:
        await engines.stop()


open_engines = PerLoop(_opened)
"""Those of this process."""


@asynccontextmanager
async def lifespan(_app: object = None) -> AsyncIterator[None]:
    """Stop with the application the services that its requests started; later requests start them again."""
    try:
        yield
    finally:
        await open_engines.stop()
