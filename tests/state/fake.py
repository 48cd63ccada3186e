"""A Redis server with scripted responses, for those that real ones give only if they are old or broken."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

VERSION = b"redis_version:7.0.15"


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


class FakeRedis:
    """Listens on a unix socket. `replies` maps a command's name to the bytes of its answer."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "fake.sock"
        self.replies: dict[bytes, bytes] = {
            b"INFO": bulk(VERSION),
            b"EVAL": bulk(b"mark"),
            b"EVALSHA": b"+OK\r\n",
            b"PING": b"+PONG\r\n",
        }
        self.asked: list[bytes] = []
        self._generation = 0
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def forget_connections(self) -> None:
        """Never answer on those that are there, as when a firewall has forgotten them."""
        self._generation += 1

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        generation = self._generation
        if task := asyncio.current_task():
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        try:
            while line := await reader.readline():
                parts: list[bytes] = []
                for _ in range(int(line[1:])):
                    length = int((await reader.readline())[1:])
                    parts.append((await reader.readexactly(length + 2))[:-2])
                self.asked.append(parts[0])
                if generation != self._generation:
                    continue
                reply = self.replies.get(parts[0].upper(), b"-ERR unknown command\r\n")
                if not reply:
                    break
                writer.write(reply)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
