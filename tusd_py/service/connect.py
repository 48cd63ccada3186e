"""Open the maintenance of the uploads that settings describe: by the server that runs on them, or in this process.

Without `redis_url`, a running server keeps its locks in memory, so it does the work; if none runs, this process locks the
upload directory as a server would. With `redis_url`, the locks are in Redis, and this process works beside all servers.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tusd_py.events.model import HookError
from tusd_py.maintenance.local import Maintenance, MaintenanceError
from tusd_py.maintenance.remote import find_server
from tusd_py.redis.embedded.server import EmbeddedRedisError
from tusd_py.service import removal_settings
from tusd_py.service.instance import Instance
from tusd_py.service.known_directories import KnownDirectories
from tusd_py.service.owner import check_user
from tusd_py.service.state_lock import directory_id
from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError
from tusd_py.storage.file.layout import STATE_DIRECTORY


@asynccontextmanager
async def open_maintenance(
    settings: Settings, *, may_open: bool, may_begin: bool = True, sweeps: bool = True
) -> AsyncIterator[Maintenance]:
    """`async with`: the maintenance of the uploads.

    may_open: whether to lock the upload directory if no server runs; no server can start meanwhile. may_begin: whether a
    directory in which nothing was stored may become an upload directory. sweeps: whether it is for a sweep, which goes by the
    settings. Raises MaintenanceError.
    """
    try:
        if settings.redis_url is None:
            server = find_server(settings.state_dir, directory_id(settings))
            if server is not None:
                yield server
                return
            if not may_open:
                raise MaintenanceError(f"no server runs on {settings.upload_dir}")
        # Do not create an instance for a mistyped path.
        if not settings.s3_bucket and not settings.upload_dir.is_dir():
            raise MaintenanceError(f"there are no uploads: {settings.upload_dir} is no directory")
        if may_open:
            check_user(settings, may_begin=True)
        if sweeps:
            removal_settings.check(settings)
        if not may_begin:
            _check_begun(settings)
        instance = Instance(settings, is_server=False)
        await instance.start()
        try:
            yield instance.maintenance
        finally:
            await instance.stop()
    except (StorageError, EmbeddedRedisError, HookError, ValueError, OSError) as problem:
        raise MaintenanceError(str(problem)) from problem


def _check_begun(settings: Settings) -> None:
    """Raise MaintenanceError for a directory that neither a server of ours nor one of tusd has used; OSError, VolumeMissing."""
    if settings.s3_bucket:
        return
    # Where a volume is not mounted, that is the reason.
    KnownDirectories(settings).check(wait=0.0)
    with os.scandir(settings.upload_dir) as entries:
        if not any(each.name == STATE_DIRECTORY or each.name.endswith(".info") for each in entries):
            raise MaintenanceError(f"there are no uploads in {settings.upload_dir}")
