"""Who does the upkeep of the uploads that settings lead to: the server that runs on them, or this process.

A server without a Redis of the operator's may keep its locks in its memory, so it is asked; if none runs, this process takes
the directory as a server would, and lets it go in the end. With a Redis of the operator's, locks are there, and this process
takes them beside all servers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tusd_py.control import find_server
from tusd_py.events import HookError
from tusd_py.service.instance import Instance
from tusd_py.settings.model import Settings
from tusd_py.state.embedded import EmbeddedStateError
from tusd_py.storage.base import StorageError
from tusd_py.upkeep import Upkeep, UpkeepFailed


@asynccontextmanager
async def upkeep(settings: Settings, *, may_take: bool) -> AsyncIterator[Upkeep]:
    """The upkeep, as long as the block lasts.

    may_take: whether the directory may be taken where no server runs; a server cannot start then. Raises UpkeepFailed.
    """
    try:
        if settings.redis_url is None:
            server = find_server(settings.state_dir)
            if server is not None:
                yield server
                return
            if not may_take:
                raise UpkeepFailed(f"no server runs on {settings.upload_dir}")
        # A path that was mistyped shall not become an instance.
        if not settings.upload_dir.is_dir():
            raise UpkeepFailed(f"there are no uploads: {settings.upload_dir} is no directory")
        instance = Instance(settings, is_server=False)
        await instance.start()
        try:
            yield instance.maintenance
        finally:
            await instance.stop()
    except (StorageError, EmbeddedStateError, HookError, ValueError, OSError) as problem:
        raise UpkeepFailed(str(problem)) from problem
