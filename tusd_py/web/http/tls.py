"""TLS: a connection from the moment it is accepted to the end of its handshake.

The event loop tells a protocol of its connection only when the handshake is done, so that connections which never begin one
would count nowhere. The server therefore listens without TLS and starts it here. Not for: certificates, which uvicorn loads.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import uvicorn

from tusd_py.background import spawn
from tusd_py.web.http.admission import Admission, admission
from tusd_py.web.http.connection_config import ConnectionConfig
from tusd_py.web.http.protocol import ServerState, UploadProtocol

HANDSHAKE_SECONDS = 15.0
"""Within which a handshake has to be done, unless the network time-out is shorter."""


class TlsHandshake(asyncio.Protocol):
    """A connection until its handshake is done; then an `UploadProtocol` takes its place."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._config = config
        self._connection: ConnectionConfig = (
            getattr(config, "connection", None) or ConnectionConfig()
        )
        self._server_state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._hello = bytearray()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        connections: set[Any] = self._server_state.connections
        connections.add(self)
        self._connection.counters.connections_open = len(connections)
        found = admission(transport, len(connections), self._connection.limits)
        if found is Admission.REFUSED_AT_ONCE:
            self._forget()
            transport.abort()
        else:
            self._task = spawn(self._run(), "tls handshake")

    def data_received(self, data: bytes) -> None:
        # uvloop reads as soon as `connection_made` returns, before TLS can be started.
        self._hello += data
        self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()

    def shutdown(self) -> None:
        """Ends it at once, as there is no request to be answered."""
        self._transport.abort()

    async def _run(self) -> None:
        early = _Early()
        try:
            secured = await self._shake_hands(early)
        except OSError:
            # Scanners, plain HTTP, a client that trusts another authority, or silence: no news.
            secured = None
        finally:
            self._forget()
        if secured is None or early.is_lost or secured.is_closing():
            self._transport.abort()
            return
        protocol = UploadProtocol(self._config, self._server_state, self._app_state, self._loop)
        protocol.raw_transport = self._transport
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        if early.data:
            protocol.data_received(bytes(early.data))
        if early.is_over:
            protocol.eof_received()

    async def _shake_hands(self, early: asyncio.Protocol) -> asyncio.Transport | None:
        """Starts TLS, with `early` as the protocol. Raises OSError, which ssl.SSLError is, where it fails or takes too long."""
        context = self._connection.tls
        if context is None or self._transport.is_closing():
            return None
        starting = self._loop.create_task(
            self._loop.start_tls(
                self._transport,
                early,
                context,
                server_side=True,
                ssl_handshake_timeout=min(HANDSHAKE_SECONDS, self._connection.limits.idle_timeout),
            )
        )
        # Its first step schedules what connects TLS with the transport; what came before is handed over right behind that.
        await asyncio.sleep(0)
        self._loop.call_soon(self._hand_over)
        return await starting

    def _hand_over(self) -> None:
        protocol = cast(asyncio.BufferedProtocol, self._transport.get_protocol())
        hello, self._hello = memoryview(bytes(self._hello)), bytearray()
        while hello and not self._transport.is_closing():
            buffer = memoryview(protocol.get_buffer(len(hello)))
            size = min(len(buffer), len(hello))
            buffer[:size] = hello[:size]
            protocol.buffer_updated(size)
            hello = hello[size:]

    def _forget(self) -> None:
        connections: set[Any] = self._server_state.connections
        connections.discard(self)
        self._connection.counters.connections_open = len(connections)


class _Early(asyncio.Protocol):
    """Keeps what comes right behind the handshake, before anybody can be told that the connection is there."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_over = False
        self.is_lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> None:
        self.is_over = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
