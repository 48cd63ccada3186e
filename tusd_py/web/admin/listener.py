"""Serve the operators' application on an address of its own, in the event loop of the server.

Its connections are the same as those of uploads: strangers who say nothing, or who do not read, are closed after a while, and
cannot use up the descriptors of the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager

from tusd_py import logs
from tusd_py.background import spawn
from tusd_py.settings.model import Settings
from tusd_py.web.admin.app import AdminApp
from tusd_py.web.admin.place import AdminPlace
from tusd_py.web.http.connection_config import ConnectionConfig, Limits
from tusd_py.web.http.server import UploadConfig, UploadServer

logger = logging.getLogger(__name__)

_MOST_CONNECTIONS = 256
_IDLE_SECONDS = 10.0
"""Orders are small: nobody needs longer for the next byte of one."""
_END_SECONDS = 2


class _Server(UploadServer):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to the server of uploads."""
        yield


class AdminListener:
    """Serves an application on sockets."""

    def __init__(self, app: AdminApp, place: AdminPlace, settings: Settings) -> None:
        limits = Limits(
            connections=_MOST_CONNECTIONS,
            idle_timeout=min(_IDLE_SECONDS, settings.network_timeout),
        )
        config = UploadConfig(
            app,
            ConnectionConfig(limits=limits),
            lifespan="off",
            timeout_graceful_shutdown=_END_SECONDS,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
        self._server = _Server(config)
        self._sockets = place.sockets
        self._task: asyncio.Task[None] | None = None
        self._url = place.url

    def start(self) -> None:
        """Begin to accept connections."""
        for each in self._sockets:
            # Not only once the task below runs: who reads the line in the log connects at once.
            each.listen(_MOST_CONNECTIONS)
        self._task = spawn(self._server.serve(self._sockets), "operators' page")
        logs.event(
            logger,
            logging.INFO,
            "operators",
            message=f"Operators' page at {self._url} (tusd-py dashboard prints a link)",
            url=self._url,
        )

    async def stop(self) -> None:
        """Stop; running requests end within seconds."""
        if self._task is not None:
            self._server.should_exit = True
            await asyncio.gather(self._task, return_exceptions=True)
