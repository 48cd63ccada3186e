"""Self-test at startup: checks over a connection to itself that request bodies arrive intact with the installed uvicorn.

Direct bodies use parts of uvicorn that are not stable between versions. Two pipelined requests are sent before any client is
served: one whose body bypasses the parser, and a second one right behind it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from contextlib import suppress
from typing import Literal

from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from tusd_py.web.http.protocol import EXTENSION, Exchange, Limits, UploadConfig, UploadProtocol

logger = logging.getLogger(__name__)

_TIMEOUT = 30.0
"""Seconds. It takes milliseconds, but machines stand still at times."""
_BODY = bytes(range(256)) * 1024
_NEXT = b"the next request"

Works = Literal["direct", "stream", "nothing"]


def what_works() -> Works:
    """The ways on which bodies come in as they were sent: both ("direct"), through the parser only, or none at all."""
    ways: tuple[Works, ...] = ("direct", "stream")
    for way in ways:
        config = UploadConfig(_Probe(direct=way == "direct"), limits=Limits(), lifespan="off")
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            problem = runner.run(_try(config))
        if problem is None:
            return way
        logger.debug("bodies do not come in (%s): %s", way, problem)
    return "nothing"


class _Probe:
    """An application that answers with the digest of what it got."""

    def __init__(self, *, direct: bool) -> None:
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        digest = hashlib.sha256()
        exchange: Exchange = scope["extensions"][EXTENSION]
        transfer = exchange.transfer(digest.update) if self._direct else None
        if transfer is not None:
            await transfer.done
        else:
            more = True
            while more:
                message = await receive()
                digest.update(message.get("body", b""))
                more = message.get("more_body", False)
        answer = digest.hexdigest().encode()
        headers = [(b"content-length", b"%d" % len(answer))]
        if exchange.respond(200, headers, answer):
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


async def _try(config: UploadConfig) -> str | None:
    """What is wrong, if anything is."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    protocol = UploadProtocol(config, ServerState(), {}, loop)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, ours)
    reader, writer = await asyncio.open_connection(sock=theirs)
    try:
        async with asyncio.timeout(_TIMEOUT):
            return await _exchange(reader, writer)
    except Exception as problem:  # noqa: BLE001 - whatever a changed library raises
        return repr(problem)
    finally:
        transport.abort()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
    """Sends two requests and looks at what is answered; what is wrong with that."""
    for body in (_BODY, _NEXT):
        writer.write(b"PATCH / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
    for body in (_BODY, _NEXT):
        head = await reader.readuntil(b"\r\n\r\n")
        answer = await reader.readexactly(64)
        if not head.startswith(b"HTTP/1.1 200 "):
            return f"answered with {head[:40]!r}"
        if answer != hashlib.sha256(body).hexdigest().encode():
            return "a body came in otherwise than it was sent"
    return None
