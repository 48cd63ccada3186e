"""A real primary with a replica and Sentinels that watch them, for tests of failovers."""

from __future__ import annotations

import subprocess
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from tests.support import ports
from tests.support.redis import RedisServer, binary
from tests.support.waiting import wait_until

SERVICE = "uploads"
_PASSWORD = "secret-of-redis"


class Sentinel:
    """One Sentinel. down_after: seconds without a response after which it considers the primary dead."""

    def __init__(self, directory: Path, primary: RedisServer, *, down_after: float) -> None:
        holder = ports.reserve()
        weakref.finalize(self, holder.close)
        self.port: int = holder.getsockname()[1]
        directory.mkdir()
        self._log = directory / "sentinel.log"
        config = directory / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 1\n"
            f"sentinel auth-pass {SERVICE} {_PASSWORD}\n"
            f"sentinel down-after-milliseconds {SERVICE} {round(down_after * 1000)}\n"
            f"sentinel failover-timeout {SERVICE} 10000\n"
        )
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [binary("redis"), str(config), "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.client = redis.Redis(port=self.port, socket_timeout=30)

    def primary_port(self) -> int | None:
        """The port of the primary according to it; None if it does not answer yet."""
        try:
            found = self.client.sentinel_get_master_addr_by_name(SERVICE)
        except redis.RedisError:
            return None
        return int(found[1]) if isinstance(found, tuple) else None

    def replicas(self) -> int:
        """The number of replicas that it knows."""
        try:
            return len(self.client.sentinel_slaves(SERVICE))
        except redis.RedisError:
            return 0

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait(60)


class Watched:
    """A primary and a replica, with a password, and a Sentinel."""

    def __init__(self, directory: Path, *, down_after: float = 1.0) -> None:
        self.first = RedisServer(
            directory / "first",
            tcp=True,
            password=_PASSWORD,
            options=["--masterauth", _PASSWORD, "--repl-diskless-sync-delay", "0"],
        )
        self.second = RedisServer(
            directory / "second",
            tcp=True,
            password=_PASSWORD,
            options=[
                *("--masterauth", _PASSWORD),
                *("--replicaof", f"127.0.0.1 {self.first.port}"),
            ],
        )
        self._directory = directory
        self._down_after = down_after

    def __enter__(self) -> Self:
        self._directory.mkdir(exist_ok=True)
        self.first.start()
        self.second.start()
        wait_until(lambda: b"master_link_status:up" in _info(self.second), "the replica")
        self.sentinel = Sentinel(
            self._directory / "sentinel", self.first, down_after=self._down_after
        )
        wait_until(lambda: self.sentinel.replicas() == 1, "the Sentinel to know the replica")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.sentinel.close()
        self.first.kill9()
        self.second.kill9()

    @property
    def url(self) -> str:
        """A URL whose first Sentinel does not exist."""
        sentinels = f"127.0.0.1:1,127.0.0.1:{self.sentinel.port}"
        return f"redis+sentinel://:{_PASSWORD}@{sentinels}/{SERVICE}/0"

    def wait_for_failover(self) -> None:
        """Wait until the replica is the primary and accepts writes."""

        def took_over() -> bool:
            return self.sentinel.primary_port() == self.second.port and b"role:master" in _info(
                self.second
            )

        wait_until(took_over, f"the failover:\n{self.sentinel.log()}", 60.0)


def _info(server: RedisServer) -> bytes:
    # Text as it comes: redis-py makes a dictionary of it.
    with redis.Redis.from_url(server.url, socket_timeout=30) as client:
        connection = client.connection_pool.get_connection()
        try:
            connection.send_command("INFO", "replication")
            answer = connection.read_response()
        finally:
            client.connection_pool.release(connection)
    assert isinstance(answer, bytes)
    return answer
