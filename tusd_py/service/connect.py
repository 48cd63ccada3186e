"""Who does the upkeep of the uploads that settings lead to: the server that runs on them, or this process.

A server without a Redis of the operator's may keep its locks in its memory, so it is asked; if none runs, this process takes
the directory as a server would, and lets it go in the end. With a Redis of the operator's, locks are there, and this process
takes them beside all servers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tusd_py.events.model import HookError
from tusd_py.maintenance.local import Maintenance, MaintenanceError
from tusd_py.maintenance.remote import find_server
from tusd_py.redis.embedded.server import EmbeddedRedisError
from tusd_py.service.instance import Instance
from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError


@asynccontextmanager
async def open_maintenance(settings: Settings, *, may_open: bool) -> AsyncIterator[Maintenance]:
    """The upkeep, as long as the block lasts.

    may_open: whether the directory may be taken where no server runs; a server cannot start then. Raises MaintenanceError.
    """
    try:
        if settings.redis_url is None:
            server = find_server(settings.state_dir)
            if server is not None:
                yield server
                return
            if not may_open:
                raise MaintenanceError(f"no server runs on {settings.upload_dir}")
        # A path that was mistyped shall not become an instance.
        if not settings.upload_dir.is_dir():
            raise MaintenanceError(f"there are no uploads: {settings.upload_dir} is no directory")
        instance = Instance(settings, is_server=False)
        await instance.start()
        try:
            yield instance.maintenance
        finally:
            await instance.stop()
    except (StorageError, EmbeddedRedisError, HookError, ValueError, OSError) as problem:
        raise MaintenanceError(str(problem)) from problem
