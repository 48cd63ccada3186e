"""sendfile on real sockets, under asyncio's loop and under uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from tusd_py.web.http import sendfile as module
from tusd_py.web.http.sendfile import FileTruncated, is_supported, sendfile

MIB = 1024 * 1024
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"

Scenario = Callable[[], Awaitable[None]]
Run = Callable[[Scenario], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a scenario on the loop in question, and fails if it logged an error or left a
    descriptor.
    """
    factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def run_scenario(scenario: Scenario) -> None:
        async def main() -> None:
            errors: list[object] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, what: errors.append(what))
            # What a loop opens once, for its own use, it opens before anything is counted.
            async with connection():
                await asyncio.to_thread(str)
            before = len(os.listdir("/proc/self/fd"))
            await scenario()
            while len(os.listdir("/proc/self/fd")) > before:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)
            assert not errors

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(main(), 100))

    return run_scenario


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of 200 MB of which no two MiB are the same."""
    path = tmp_path_factory.mktemp("sendfile") / "content"
    seed = os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(200):
            file.write(number.to_bytes(8, "big") + seed[8:])
    yield path
    path.unlink()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


class Served(asyncio.Protocol):
    """The server's end of one connection."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.made: asyncio.Future[asyncio.Transport] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made.set_result(cast("asyncio.Transport", transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


@contextlib.asynccontextmanager
async def connection(
    *, unix: Path | None = None, receive_buffer: int | None = None
) -> AsyncIterator[tuple[Served, asyncio.Transport, socket.socket]]:
    """A served connection, its transport, and the (blocking) socket of its client."""
    loop = asyncio.get_running_loop()
    served = Served()
    client = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    server: asyncio.Server
    if unix:
        server = await loop.create_unix_server(lambda: served, str(unix))
        address: Any = str(unix)
    else:
        server = await loop.create_server(lambda: served, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
    try:
        await asyncio.to_thread(client.connect, address)
        transport = await served.made
        yield served, transport, client
    finally:
        client.close()
        transport.abort()
        await served.lost
        server.close()


def read(
    client: socket.socket,
    *,
    limit: int | None = None,
    piece: int = MIB,
    pause: float = 0.0,
    hurry: threading.Event | None = None,
) -> tuple[int, str, bool]:
    """Read to the end or to `limit`: the bytes behind HEAD, their SHA-256, and whether the end was
    orderly.
    """
    digest, count = hashlib.sha256(), -len(HEAD)
    while limit is None or count < limit:
        try:
            data = client.recv(min(piece, MIB if limit is None else limit - count))
        except ConnectionResetError:
            return count, digest.hexdigest(), False
        if not data:
            break
        digest.update(data[max(-count, 0) :])
        count += len(data)
        if hurry:
            hurry.wait(pause)
    return count, digest.hexdigest(), True


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_large_file_arrives_whole_behind_the_header_fields(
    run: Run, content: Path, tmp_path: Path, kind: str
) -> None:
    unix = tmp_path / "socket" if kind == "unix" else None

    async def scenario() -> None:
        async with connection(unix=unix) as (_, transport, client):
            with opened(content) as fd:
                size = os.fstat(fd).st_size
                reading = asyncio.create_task(asyncio.to_thread(read, client))
                transport.write(HEAD)
                loop = asyncio.get_running_loop()
                assert await sendfile(loop, transport, fd, 0, size) == size
                assert os.lseek(fd, 0, os.SEEK_CUR) == 0
                transport.close()
                assert await reading == (size, sha256(content), True)

    run(scenario)


def test_what_the_transport_writes_afterwards_comes_afterwards(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 40_000)

    async def scenario() -> None:
        async with connection() as (_, transport, client):
            loop = asyncio.get_running_loop()
            with opened(path) as fd:
                transport.write(HEAD)
                got = asyncio.create_task(asyncio.to_thread(client.makefile("rb").read))
                assert await sendfile(loop, transport, fd, 3, 10_000_000) == 10_000_000
                transport.write(b"between")
                assert await sendfile(loop, transport, fd, 0, 5) == 5
                transport.write(b"after")
            transport.close()
            whole = path.read_bytes()
            assert await got == HEAD + whole[3:10_000_003] + b"between" + whole[:5] + b"after"

    run(scenario)


def test_a_full_transport_is_waited_for(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"z" * MIB)
    pending = b"p" * (16 * MIB)

    async def scenario() -> None:
        async with connection() as (_, transport, client):
            transport.write(pending)
            assert transport.get_write_buffer_size()
            with opened(path) as fd:
                got = asyncio.create_task(asyncio.to_thread(client.makefile("rb").read))
                assert await sendfile(asyncio.get_running_loop(), transport, fd, 0, MIB) == MIB
            transport.close()
            assert await got == pending + b"z" * MIB

    run(scenario)


class Paced:
    """A loop whose clock is moved on by the reader, so that it stands still with it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)


class Pauses(threading.Event):
    """Pauses of a reader, by which its loop's clock is advanced."""

    def __init__(self, paced: Paced) -> None:
        super().__init__()
        self._paced = paced

    def wait(self, timeout: float | None = None) -> bool:
        self._paced.now += timeout or 0.0
        return super().wait(timeout)


def test_a_slow_reader_gets_everything_though_it_is_slower_than_the_time_out(
    run: Run, tmp_path: Path
) -> None:
    """The kernel announces room once a third of its buffer is free, here every 0.9 seconds."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(600_000))

    async def scenario() -> None:
        async with connection(receive_buffer=32768) as (_, transport, client):
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000
            )
            with opened(path) as fd:
                transport.write(HEAD)
                paced = Paced(asyncio.get_running_loop())
                hurry = Pauses(paced)
                reading = asyncio.create_task(
                    asyncio.to_thread(read, client, piece=8000, pause=0.05, hurry=hurry)
                )
                loop = cast("asyncio.AbstractEventLoop", paced)
                assert await sendfile(loop, transport, fd, 0, 600_000, idle_timeout=0.6) == 600_000
                hurry.set()
                transport.close()
                assert await reading == (600_000, sha256(path), True)

    run(scenario)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_reader_that_stalls_is_cut_off(
    run: Run, content: Path, tmp_path: Path, kind: str
) -> None:
    unix = tmp_path / "socket" if kind == "unix" else None

    async def scenario() -> None:
        async with connection(unix=unix) as (served, transport, client):
            loop = asyncio.get_running_loop()
            with opened(content) as fd:
                size = os.fstat(fd).st_size
                transport.write(HEAD)
                reading = asyncio.to_thread(read, client, limit=MIB)
                began = loop.time()
                with pytest.raises(TimeoutError, match=r"no byte for 0\.3 seconds"):
                    await asyncio.gather(
                        sendfile(loop, transport, fd, 0, size, idle_timeout=0.3), reading
                    )
                assert 0.3 <= loop.time() - began < 30
            await served.lost

    run(scenario)


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("by", ["close", "reset"])
def test_a_client_that_disappears_ends_it(run: Run, content: Path, by: str, paused: bool) -> None:
    async def scenario() -> None:
        async with connection() as (served, transport, client):
            loop = asyncio.get_running_loop()
            with opened(content) as fd:
                size = os.fstat(fd).st_size
                if paused:
                    transport.pause_reading()
                transport.write(HEAD)
                sending = asyncio.create_task(sendfile(loop, transport, fd, 0, size))
                await asyncio.to_thread(read, client, limit=MIB)
                if by == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                assert MIB <= await sending < size
            assert transport.is_closing()
            await served.lost

    run(scenario)


@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_transport_that_is_closed_under_it_ends_it(run: Run, content: Path, how: str) -> None:
    """For instance by a shutdown. The copied descriptor must not keep the connection open."""

    async def scenario() -> None:
        async with connection() as (served, transport, client):
            loop = asyncio.get_running_loop()
            with opened(content) as fd:
                size = os.fstat(fd).st_size
                sending = asyncio.create_task(sendfile(loop, transport, fd, 0, size))
                await asyncio.to_thread(read, client, limit=MIB)
                transport.close() if how == "close" else transport.abort()
                assert 0 < await sending < size
                await served.lost
                count, _, _ = await asyncio.to_thread(read, client)
                assert count < size

    run(scenario)


def test_cancellation_cuts_the_connection(run: Run, content: Path) -> None:
    async def scenario() -> None:
        async with connection() as (served, transport, client):
            loop = asyncio.get_running_loop()
            with opened(content) as fd:
                size = os.fstat(fd).st_size
                sending = asyncio.create_task(sendfile(loop, transport, fd, 0, size))
                await asyncio.to_thread(read, client, limit=MIB)
                sending.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await sending
            await served.lost

    run(scenario)


def test_a_file_that_became_shorter_is_not_a_whole_response(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(32 * MIB))

    async def scenario() -> None:
        async with connection() as (served, transport, client):
            loop = asyncio.get_running_loop()
            with opened(path) as fd:
                transport.write(HEAD)
                sending = asyncio.create_task(sendfile(loop, transport, fd, 0, 32 * MIB))
                await asyncio.to_thread(read, client, limit=MIB)
                os.truncate(path, 20 * MIB)
                reading = asyncio.create_task(asyncio.to_thread(read, client))
                with pytest.raises(FileTruncated):
                    await sending
                await served.lost
                count, _, _ = await reading
                assert count <= 19 * MIB

    path.write_bytes(bytes(32 * MIB))
    run(scenario)


def test_the_loop_rests_afterwards(run: Run, tmp_path: Path) -> None:
    """A descriptor that the selector still watches, and that has room, would wake it for ever."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)

    async def scenario() -> None:
        async with connection() as (_, transport, _):
            with opened(path) as fd:
                loop = asyncio.get_running_loop()
                assert await sendfile(loop, transport, fd, 0, 1000) == 1000
                began = time.process_time()
                await asyncio.sleep(0.3)
                assert time.process_time() - began < 0.15

    run(scenario)


def test_nothing_is_sent_for_nothing_and_to_nobody(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")

    async def scenario() -> None:
        async with connection() as (_, transport, _):
            loop = asyncio.get_running_loop()
            with opened(path) as fd:
                assert await sendfile(loop, transport, fd, 0, 0) == 0
                transport.abort()
                assert await sendfile(loop, transport, fd, 0, 1) == 0

    run(scenario)


@pytest.mark.parametrize(
    ("number", "error", "closed"),
    [
        (errno.EINVAL, asyncio.SendfileNotAvailableError, False),
        (errno.ENOSYS, asyncio.SendfileNotAvailableError, False),
        (errno.EIO, OSError, True),
    ],
)
def test_a_file_system_that_cannot_is_told_from_a_file_that_cannot_be_read(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    number: int,
    error: type[Exception],
    closed: bool,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")

    def broken(*_: int) -> int:
        raise OSError(number, os.strerror(number))

    async def scenario() -> None:
        async with connection() as (_, transport, _):
            with opened(path) as fd, monkeypatch.context() as patched:
                patched.setattr(os, "sendfile", broken)
                with pytest.raises(error):
                    await sendfile(asyncio.get_running_loop(), transport, fd, 0, 1)
            assert transport.is_closing() == closed

    run(scenario)


@pytest.mark.parametrize("why", ["not in memory", "slow"])
def test_the_loop_does_not_wait_for_the_disk(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(8 * MIB))
    real, loops_thread = os.sendfile, threading.get_ident()
    inline: list[int] = []
    elsewhere: list[int] = []

    def observed(out: int, source: int, offset: int, count: int) -> int:
        (inline if threading.get_ident() == loops_thread else elsewhere).append(count)
        if why == "slow":
            threading.Event().wait(module._SLOW_SECONDS * 1.2)
        return real(out, source, offset, count)

    def never_in_memory(*_: object) -> int:
        raise BlockingIOError

    async def scenario() -> None:
        async with connection() as (_, transport, client):
            with opened(path) as fd, monkeypatch.context() as patched:
                patched.setattr(os, "sendfile", observed)
                if why == "not in memory":
                    patched.setattr(os, "preadv", never_in_memory)
                transport.write(HEAD)
                reading = asyncio.create_task(asyncio.to_thread(read, client))
                loop = asyncio.get_running_loop()
                assert await sendfile(loop, transport, fd, 0, 8 * MIB) == 8 * MIB
                transport.close()
                assert await reading == (8 * MIB, sha256(path), True)

    run(scenario)
    assert len(inline) == (1 if why == "slow" else 0)
    assert elsewhere


def test_a_cancelled_transfer_waits_for_its_thread(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the thread would write to whatever connection has the descriptor's number by then."""
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    entered, proceed = threading.Event(), threading.Event()
    real = os.sendfile

    def held(out: int, source: int, offset: int, count: int) -> int:
        entered.set()
        proceed.wait()
        return real(out, source, offset, count)

    def never_in_memory(*_: object) -> int:
        raise BlockingIOError

    async def scenario() -> None:
        entered.clear()
        proceed.clear()
        async with connection() as (served, transport, _):
            with opened(path) as fd, monkeypatch.context() as patched:
                patched.setattr(os, "sendfile", held)
                patched.setattr(os, "preadv", never_in_memory)
                loop = asyncio.get_running_loop()
                sending = asyncio.create_task(sendfile(loop, transport, fd, 0, MIB))
                await asyncio.to_thread(entered.wait)
                for _ in range(2):
                    sending.cancel()
                    done, _ = await asyncio.wait([sending], timeout=0.05)
                    assert not done
                proceed.set()
                with pytest.raises(asyncio.CancelledError):
                    await sending
            await served.lost

    run(scenario)


def test_many_transfers_share_the_loop(run: Run, content: Path) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        async def one(number: int) -> None:
            async with connection() as (_, transport, client):
                with opened(content) as fd:
                    transport.write(HEAD)
                    reading = asyncio.create_task(asyncio.to_thread(read, client))
                    await sendfile(loop, transport, fd, number * MIB, 8 * MIB)
                    transport.close()
                    count, digest, _ = await reading
                    with content.open("rb") as file:
                        file.seek(number * MIB)
                        assert digest == hashlib.sha256(file.read(8 * MIB)).hexdigest()
                    assert count == 8 * MIB

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(one(number))

    run(scenario)


def test_tls_is_left_to_others(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")

    class Encrypted(asyncio.WriteTransport):
        def __init__(self, **extra: object) -> None:
            super().__init__(extra)

    async def scenario() -> None:
        with opened(path) as fd, socket.socket() as plain:
            context = ssl.create_default_context()
            transport = Encrypted(sslcontext=context, socket=plain)
            assert not is_supported(transport)
            assert not is_supported(Encrypted())
            assert is_supported(Encrypted(socket=plain))
            with pytest.raises(asyncio.SendfileNotAvailableError):
                await sendfile(asyncio.get_running_loop(), transport, fd, 0, 1)

    run(scenario)
