"""Maintenance of a running server by commands and workers, over a unix socket in the server's state directory.

Each connection carries one request, a line with a JSON object; the response is lines of JSON, the last with `done` or `failed`.
It names the upload directory that is meant, as the state directory may be given for another one by mistake. There is no
authentication, as only this user may enter the socket's directory. Not for: clients, and servers whose locks are
in Redis, where any process can do the work itself.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import cast

from tusd_py.maintenance.local import LocalMaintenance, MaintenanceError
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.due_index import SweepKind
from tusd_py.redis.embedded import sockets
from tusd_py.uploads.sweep import Expired, SweepReport, Tell

logger = logging.getLogger(__name__)

_DIRECTORY = "control"
_REQUEST_TIMEOUT_SECONDS = 10.0
_PROBE_SECONDS = 30.0
"""Time without a line of a response after which the server is asked whether it is alive: a sweep may take hours."""
_PROBE_TIMEOUT_SECONDS = 30.0
"""Time to answer that."""

Document = Mapping[str, object]


class ControlServer:
    """Serves requests while the server runs. state_dir: the server's."""

    def __init__(self, maintenance: LocalMaintenance, state_dir: Path) -> None:
        self._maintenance = maintenance
        self._directory = state_dir / _DIRECTORY
        self._server: asyncio.Server | None = None
        self._place: tuple[int, int] | None = None
        """Device and inode of the socket."""
        self._running: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._reads_only: set[asyncio.Task[None]] = set()
        """Those of `_running` that change nothing: no request has come yet, or one that only tells."""
        self._stopping = False

    async def start(self) -> None:
        """Listen. Raises OSError, EmbeddedRedisError if the socket cannot be created."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = sockets.path_for(self._directory)
        # Also where no lock keeps other servers out of the state directory.
        if _somebody_listens(path):
            raise OSError(errno.EADDRINUSE, "another server listens there", path)
        with suppress(FileNotFoundError):
            # Left by a server that was killed.
            os.unlink(path)
        self._server = await asyncio.start_unix_server(self._accept, path)
        self._place = _place_of(path)

    async def stop(self) -> None:
        """Stop listening, end requests that change nothing, and wait for the others.

        These end soon, as the uploads are closing.
        """
        if self._server is None:
            return
        self._stopping = True
        self._server.close()
        with suppress(OSError):
            path = sockets.path_for(self._directory)
            if _place_of(path) == self._place:
                os.unlink(path)
        for task, writer in self._running.items():
            if task in self._reads_only:
                task.cancel()
            if writer.transport.get_write_buffer_size() > 0:
                # Its client does not read, such as one before a pager.
                writer.transport.abort()
        if self._running:
            await asyncio.wait(self._running)
        self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._running[task] = writer
        self._reads_only.add(task)
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_SECONDS):
                line = await reader.readline()
            if reader.at_eof():
                # Its client has given up, as after this process stood still.
                return
            request = json.loads(line)
            if _may_change(request):
                self._reads_only.discard(task)
            _write(writer, await self._answer(request, writer))
            await writer.drain()
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        except (OSError, ValueError, TypeError, KeyError) as problem:
            # The client has disconnected, or sent something else. An operation that has started is completed all the same.
            logger.debug("a request to the control socket failed: %r", problem)
        finally:
            del self._running[task]
            self._reads_only.discard(task)
            writer.close()

    async def _answer(self, request: Document, writer: asyncio.StreamWriter) -> Document:
        async def tell(expired: Expired) -> None:
            if not writer.is_closing() and not self._stopping:
                _write(writer, {"expired": asdict(expired)})
                with suppress(OSError):
                    await writer.drain()

        try:
            match request:
                case {"do": "answer"}:
                    return {"done": {}}
                case {"directory": str(meant)} if self._is_foreign(meant):
                    return {
                        "failed": "the server with this state directory serves another upload directory (--upload-dir, "
                        "--state-dir)"
                    }
                case {"do": "sweep", "kind": "due" | "all" as kind, "dry_run": bool(dry_run)}:
                    listener = tell if request.get("tell") else None
                    report = await self._maintenance.sweep(
                        kind, dry_run=dry_run, tell=listener, force=request.get("force") is True
                    )
                    return {"done": asdict(report)}
                case {"do": "remove", "upload": str(upload_id)}:
                    problem = await self._maintenance.remove(
                        upload_id, unreadable=request.get("unreadable") is True
                    )
                    return {"done": {"problem": problem}}
        except (MaintenanceError, RedisUnavailable) as problem:
            return {"failed": str(problem)}
        return {"failed": f"the server does not understand {sorted(request)}"}

    def _is_foreign(self, directory: str) -> bool:
        # On a full disk it has none.
        return bool(self._maintenance.directory) and directory != self._maintenance.directory


class RemoteMaintenance:
    """`Maintenance` by a running server. directory: id of the upload directory that is meant; None if any is."""

    def __init__(self, path: str, directory: str | None = None) -> None:
        self._path = path
        self._meant: Document = {} if directory is None else {"directory": directory}

    async def sweep(
        self,
        kind: SweepKind,
        *,
        dry_run: bool = False,
        tell: Tell | None = None,
        force: bool = False,
    ) -> SweepReport:
        request = {
            "do": "sweep",
            "kind": kind,
            "dry_run": dry_run,
            "tell": tell is not None,
            "force": force,
        }
        return _report(await self._ask(request, tell, before="the sweep did"))

    async def remove(self, upload_id: str, *, unreadable: bool = False) -> str | None:
        request = {"do": "remove", "upload": upload_id, "unreadable": unreadable}
        done = await self._ask(request, None, before="it answered")
        return cast("dict[str, str | None]", done)["problem"]

    async def _ask(self, request: Document, tell: Tell | None, *, before: str) -> Document:
        """Send a request, and pass on what the server tells until it is done. Returns the result. Raises MaintenanceError.

        before: what did not happen yet if the server ends, for the error.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
        except OSError as problem:
            raise MaintenanceError(f"the server cannot be reached: {problem}") from problem
        try:
            _write(writer, {**request, **self._meant})
            while line := await self._line(reader):
                answer = cast(Document, json.loads(line))
                if "failed" in answer:
                    raise MaintenanceError(str(answer["failed"]))
                if "done" in answer:
                    return cast(Document, answer["done"])
                if tell is not None:
                    await tell(_expired(cast(Document, answer["expired"])))
        except OSError as problem:
            raise MaintenanceError(f"the connection to the server was lost: {problem}") from problem
        finally:
            writer.close()
        raise MaintenanceError(f"the server ended before {before}")

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        """Read a line, for as long as the server is alive. Raises MaintenanceError, OSError."""
        reading = asyncio.ensure_future(reader.readline())
        try:
            while not (await asyncio.wait([reading], timeout=_PROBE_SECONDS))[0]:
                await self._probe()
            return reading.result()
        finally:
            reading.cancel()

    async def _probe(self) -> None:
        """Check that the server answers at all: one that was stopped by a signal would be waited for in vain."""
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._path)
                try:
                    _write(writer, {"do": "answer"})
                    await reader.readline()
                finally:
                    writer.close()
        except TimeoutError:
            raise MaintenanceError("the server is there, but does not answer") from None
        except OSError:
            # It ended, which ends the response too.
            return


def find_server(state_dir: Path, upload_directory: str | None = None) -> RemoteMaintenance | None:
    """Connect to the server that runs with this state directory; None if none does, or its locks are in Redis.

    upload_directory: id of the upload directory that is meant.
    """
    directory = state_dir / _DIRECTORY
    if not directory.is_dir():
        return None
    path = sockets.path_for(directory)
    return RemoteMaintenance(path, upload_directory) if sockets.listens(path) else None


def _somebody_listens(path: str) -> bool:
    """Return whether a socket is another process's, also if that does not accept connections now."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:
            pass
    return True


def _place_of(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _may_change(request: Document) -> bool:
    match request:
        case {"do": "answer"} | {"do": "sweep", "dry_run": True}:
            return False
    return True


def _write(writer: asyncio.StreamWriter, document: Document) -> None:
    writer.write(json.dumps(document).encode() + b"\n")


def _report(document: Document) -> SweepReport:
    counts = {name: value for name, value in document.items() if isinstance(value, int)}
    return SweepReport(**counts, held_because=str(document.get("held_because", "")))


def _expired(document: Document) -> Expired:
    match document:
        case {"upload": str(upload), "bytes": int(size), "since": float(since) | int(since)}:
            return Expired(upload, size, float(since))
    raise MaintenanceError("the server's response is malformed")
