"""A client that behaves as URLSession does: it resumes below the application. `python -m tests.ietf.url_session` tries that.

It sends the whole file with its first request. Without an interim response it has nothing to resume from. When a connection
is lost it asks the URL that it was told for the offset, and sends the rest; any final response is the end, even one that says
to try again later. What it speaks in which version is written down here and in `tests/support/ietf.py`.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.faults import FaultProxy, Plan, Way
from tests.support.ietf import Ietf
from tests.support.server import ServerProcess
from tests.support.tus import path_of
from tests.support.wire import BadResponse, Connection, ConnectionEnded, Response

VERSIONS = (3, 5, 6, 8)
"""iOS 17; 18.0; 18.1 and later; 26.2."""
PIECE = 32 * 1024
_GIVE_UP_SECONDS = 60.0


class NothingToResume(Exception):
    """The connection was lost before an interim response came."""


@dataclass
class UrlSession:
    """One upload.

    Attributes:
        address: Of the server, or of what stands in front of it.
        headers: Of every request.
        waits: Whether it sends no body before the first interim response, as on a line that is slower than the server.
        on_piece: Called before each piece of a body, with its position.
        interim: The interim responses that came.
        losses: Connections that were lost.
    """

    ietf: Ietf
    address: tuple[str, int]
    headers: Mapping[str, str] = field(default_factory=dict)
    waits: bool = True
    on_piece: Callable[[int], None] = lambda _sent: None
    interim: list[Response] = field(default_factory=list)
    losses: int = 0
    path: str = ""

    def upload(self, data: bytes) -> Response:
        """Upload `data`; return the final response. Raises NothingToResume."""
        fields = {**self.ietf.marks(), **self.ietf.complete(True), **self.headers}
        response = self._send("POST", self.ietf.collection, fields, data)
        if response is None and not self.path:
            raise NothingToResume
        return response or self.resume(data)

    def resume(self, data: bytes) -> Response:
        """Resume the upload of `data` at `path` until there is a final response; return that."""
        response = None
        while response is None:
            self.losses += 1
            status = self._ask()
            if status.status != 204:
                return status
            offset = int(status["Upload-Offset"])
            if self.ietf.is_complete(status):
                # The response was lost on its way.
                return status
            fields = {**self.ietf.append_headers(offset, True), **self.headers}
            response = self._send("PATCH", self.path, fields, data[offset:])
        return response

    def _ask(self) -> Response:
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError, BadResponse), Connection(self.address) as connection:
                fields = {**self.ietf.marks(), **self.headers}
                return connection.request("HEAD", self.path, fields)
            # Nobody listens; URLSession waits for the network, which tells it nothing either.
            time.sleep(0.02)
        raise AssertionError(f"nobody answers at {self.address}")

    def _send(
        self, method: str, path: str, fields: Mapping[str, str], data: bytes
    ) -> Response | None:
        """The final response; None if the connection is lost before."""
        try:
            with Connection(self.address) as connection:
                head = {**fields, "Content-Length": str(len(data))}
                connection.send_head(method, path, head)
                if self.waits and method == "POST":
                    select.select([connection.sock], [], [], _GIVE_UP_SECONDS)
                for at in range(0, len(data), PIECE):
                    self.on_piece(at)
                    with suppress(BrokenPipeError, ConnectionResetError):
                        connection.send(data[at : at + PIECE])
                    if (final := self._read(connection, method, wait=False)) is not None:
                        return final
                return self._read(connection, method, wait=True)
        except (ConnectionEnded, OSError):
            return None

    def _read(self, connection: Connection, method: str, *, wait: bool) -> Response | None:
        """Take the responses that are there, or that come until the final one; return that."""
        while wait or select.select([connection.sock], [], [], 0)[0]:
            response = connection.read_any(method)
            if response.status >= 200:
                return response
            assert response.status == 104
            assert response["Upload-Draft-Interop-Version"] == str(self.ietf.version)
            self.interim.append(response)
            if "Location" in response:
                self.path = path_of(response["Location"])
        return None


def cut_at_random(dice: random.Random, size: int) -> Plan:
    """A connection that is cut somewhere, most often on its way up."""
    if dice.random() < 0.15:
        return Plan(down=Way(cut_after=dice.randrange(1, 600)))
    return Plan(up=Way(cut_after=dice.randrange(300, size), cut=dice.choice(("fin", "rst"))))


def attempt(server: ServerProcess, proxy: FaultProxy, dice: random.Random, version: int) -> int:
    """One upload over connections that are cut; returns how often it was resumed. Fails if a byte is wrong."""
    data = dice.randbytes(dice.choice((1_000, 70_000, 400_000, 2_000_000)))
    for _ in range(dice.randrange(4)):
        proxy.plan(cut_at_random(dice, len(data)))
    while True:
        session = UrlSession(Ietf(server, version), proxy.address, waits=dice.random() < 0.7)
        try:
            response = session.upload(data)
        except NothingToResume:
            # The application begins anew.
            continue
        if response.status >= 500:
            raise AssertionError(f"a final {response.status}: {response.body!r}")
        assert response.status in (200, 201, 204), response
        path = session.path or path_of(response["Location"])
        assert server.stored(path.rsplit("/", 1)[1]) == data
        assert Ietf(server, version).head(path)["Upload-Offset"] == str(len(data))
        return session.losses


def main() -> None:
    """Upload many files while the server is killed now and then."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    parser.add_argument("--kill-every", type=float, default=4.0, help="seconds")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    dice = random.Random(options.seed)
    done, resumed, kills = threading.Event(), 0, 0
    with tempfile.TemporaryDirectory() as directory:
        server = ServerProcess(Path(directory) / "uploads").start()
        with FaultProxy(server.address) as proxy:

            def kill() -> None:
                nonlocal kills
                while not done.wait(options.kill_every):
                    server.kill9()
                    server.restart()
                    kills += 1

            killer = threading.Thread(target=kill)
            killer.start()
            try:
                for number in range(options.count):
                    resumed += attempt_until_done(server, proxy, dice, VERSIONS[number % 4])
            finally:
                done.set()
                killer.join()
                server.close()
    print(f"{options.count} uploads, resumed {resumed} times, {kills} kills: all bytes right")


def attempt_until_done(
    server: ServerProcess, proxy: FaultProxy, dice: random.Random, version: int
) -> int:
    """As `attempt`, but the check of the result waits for a server that was just killed."""
    while True:
        try:
            return attempt(server, proxy, dice, version)
        except OSError:
            time.sleep(0.1)


if __name__ == "__main__":
    main()
