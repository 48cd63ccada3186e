"""uvicorn's `Config` and `Server` for our protocol class. Nothing that uvicorn keeps private is used."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from tusd_py.web.http.connection_config import ConnectionConfig
from tusd_py.web.http.protocol import UploadProtocol
from tusd_py.web.http.tls import TlsHandshake

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class UploadConfig(uvicorn.Config):
    """uvicorn's configuration with that of our connections; the other arguments are uvicorn's own."""

    def __init__(self, app: ASGIApp, connection: ConnectionConfig, **kwargs: object) -> None:
        http: type[asyncio.Protocol] = (
            TlsHandshake if kwargs.get("ssl_certfile") else UploadProtocol
        )
        ours = {"access_log": False, "proxy_headers": False, "server_header": False, **kwargs}
        super().__init__(app, http=http, ws="none", log_config=None, **ours)  # type: ignore[arg-type]
        self.connection = connection

    def load(self) -> None:
        super().load()
        # The server listens without TLS; see `TlsHandshake`.
        self.connection.tls, self.ssl = self.ssl, None


class UploadServer(uvicorn.Server):
    """uvicorn's server, which calls what it is given.

    on_startup: once it accepts connections. on_shutdown: first when it has to stop, so that requests in flight come to an end.
    on_end: once the shutdown is complete, in the event loop.
    """

    def __init__(
        self,
        config: UploadConfig,
        *,
        on_startup: Callable[[], None] = lambda: None,
        on_shutdown: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self._on_startup = on_startup
        self._on_shutdown = on_shutdown
        self._on_end = on_end

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await super().serve(sockets)
        if self.started:
            self._on_end()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_startup()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_shutdown()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Let signals stop the server, which is a success: unlike uvicorn's own, this does not raise them again at the end."""
        before = {number: signal.signal(number, self.handle_exit) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
