"""Servers that stall for longer than their lock's lease, or whose Redis loses locks: `python -m tests.crash.stops`.

Two servers share a directory and a Redis. One is stopped at a point in the middle of a request, or Redis is emptied meanwhile;
the other one gets the same upload and finishes or removes it; then the first one goes on. Whatever it does then must change
nothing: the bytes are right, what was removed stays removed, and what did not happen is not announced.

`--seed` and `--count` say which rounds are done, and how many; a failure tells its seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.changes import Changes, is_stopped
from tests.support.files import files_below
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import OCTETS, Tus, checksum, id_of
from tests.support.waiting import wait_until
from tests.support.wire import Response

LEASE = 0.8
"""Seconds."""
GIVE_UP = 45.0
"""Seconds in which the other server has to get an upload whose holder is not in the middle of a change."""
MIB = 1 << 20

CHUNKS = {"plain": 200_000, "short": 200_000, "long": 3 * MIB}
"""Kinds of chunks, and their bytes: without a checksum, with one in memory, with one written as it comes."""

POINTS: dict[str, tuple[str, ...]] = {
    "body": ("plain", "short", "long"),
    "write": ("plain", "short", "long"),
    "within-mark": ("short", "long"),
    "discard": ("long", "cut long"),
    "cut": ("long", "cut long"),
    "marker": ("short", "long"),
    "hook": ("plain", "short"),
    "keep": ("plain", "long"),
    "finish": ("plain", "long"),
    "within-finish": ("plain", "short"),
    "recover": ("plain",),
    "terminate-hook": ("delete",),
    "remove": ("delete",),
    "within-remove": ("delete",),
}
"""Where the first server is stopped, in which requests. `cut long` is a long chunk whose connection ends."""


@dataclass(frozen=True)
class Round:
    """One round. then: what the other server is asked to do, `finish` or `remove`. flush: whether Redis is emptied as well."""

    point: str
    request: str
    then: str
    flush: bool

    @classmethod
    def of(cls, dice: random.Random) -> Round:
        point = dice.choice([*POINTS])
        return cls(
            point,
            dice.choice(POINTS[point]),
            dice.choice(("finish", "remove")),
            dice.random() < 0.5,
        )


class Pair:
    """Two servers of one directory: `first`, which is stopped, and `second`."""

    def __init__(self, directory: Path, redis: RedisServer) -> None:
        self._redis = redis
        self.armed = directory / "armed"
        self.armed.mkdir()
        self.uploads = directory / "uploads"
        flags = [
            *("--redis-url", redis.url, "--lock-lease", f"{LEASE * 1000:.0f}ms"),
            *("--acquire-lock-timeout", "2s"),
            *("--hook", str(Path(__file__).with_name("stopping.py"))),
        ]
        # Only one of them is ever stopped, but both announce what happens.
        self._servers = [
            ServerProcess(self.uploads, *flags, env={"STOP_AT": str(armed)})
            for armed in (self.armed, directory / "never")
        ]
        self.first, self.second = (Tus(server.start()) for server in self._servers)
        self._changes = Changes(self.uploads)
        self.refused = 0
        self._was_finished = False

    def close(self) -> None:
        self._changes.close()
        for server in self._servers:
            server.close()

    def do(self, case: Round, dice: random.Random) -> None:
        """One round. Raises AssertionError where something was lost, changed or announced that did not happen."""
        size = CHUNKS.get(case.request.removeprefix("cut "), 1000)
        data = dice.randbytes(size)
        path = self.first.new(size)
        self._was_finished = False
        with self._running(case, path, data) as answers:
            if case.flush:
                self._redis.client.flushall()
            removed = self._take_over(case, path, data)
            os.kill(self.first.server.pid, signal.SIGCONT)
        self._check(case, path, data, answers, removed)

    @contextmanager
    def _running(self, case: Round, path: str, data: bytes) -> Iterator[list[Response]]:
        """A request at the first server, which stands still in it; it has ended at the end of the block."""
        answers: list[Response] = []
        if case.point != "body":
            (self.armed / case.point).touch()

        def send() -> None:
            with suppress(ConnectionError):
                answers.append(self._send(case, path, data))

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        if case.point == "body":
            self._stop_in_body(path, case)
        wait_until(self._is_stopped, f"the server to stop at {case.point}")
        try:
            yield answers
        finally:
            os.kill(self.first.server.pid, signal.SIGCONT)
            thread.join(60)
        assert not thread.is_alive(), "the request does not end"

    def _send(self, case: Round, path: str, data: bytes) -> Response:
        if case.request == "delete":
            return self.first.delete(path)
        headers = {"Content-Length": str(len(data)), "Upload-Offset": "0", "Content-Type": OCTETS}
        wrong = case.point in ("discard", "cut")
        if case.request != "plain":
            headers["Upload-Checksum"] = checksum(b"wrong" if wrong else data, "sha256")
        with self.first.connect() as connection:
            connection.send_head("PATCH", path, self.first.patch_headers(0, headers))
            half = len(data) // 2
            connection.send(data[:half])
            if case.request.startswith("cut"):
                # Only once some of it is in the file there is something to be cut back.
                wait_until(lambda: self._stored(path) > 0, "bytes in the file")
                connection.reset()
                raise ConnectionResetError
            if case.point == "body":
                wait_until(self._is_stopped, "the server to stop in the body")
            connection.send(data[half:])
            return connection.read_response("PATCH")

    def _stop_in_body(self, path: str, case: Round) -> None:
        if case.request != "short":
            wait_until(lambda: self._stored(path) > 0, "bytes in the file")
        os.kill(self.first.server.pid, signal.SIGSTOP)

    def _stored(self, path: str) -> int:
        return (self.uploads / id_of(path)).stat().st_size

    def _is_finished(self, path: str) -> bool:
        record = json.loads((self.uploads / f"{id_of(path)}.info").read_bytes())
        return bool(record["TusdPy"]["FinishedAt"])

    def _is_stopped(self) -> bool:
        return is_stopped(self.first.server)

    def _take_over(self, case: Round, path: str, data: bytes) -> bool:
        """The other server's part; whether the upload was removed. In the middle of a change it waits for the first one."""
        # Where a body stops, and where the threads of a cut connection are, is left to chance: it may be within a change.
        may_be_changing = (
            case.point.startswith("within")
            or case.point == "body"
            or case.request.startswith("cut")
        )
        deadline = time.monotonic() + GIVE_UP
        while True:
            head = self.second.head(path)
            if head.status in (200, 410):
                break
            assert head.status == 423, head
            self.refused += 1
            if self._changes.is_changing(path):
                # Only here a stopped server keeps others out: the kernel holds its change.
                assert may_be_changing, f"it stopped within a change: {case}"
                os.kill(self.first.server.pid, signal.SIGCONT)
            assert time.monotonic() < deadline, f"the upload was not taken over: {case}"
        if head.status == 410:
            assert case.request == "delete", f"it was removed: {case}"
            return True
        # A HEAD makes up for the finish of an upload whose bytes are all there.
        self._was_finished = self._is_finished(path)
        if case.then == "remove":
            answer = self.second.delete(path)
            assert answer.status in (204, 410), answer
            return True
        offset = int(head["Upload-Offset"])
        if offset < len(data):
            answer = self.second.patch(path, offset, data[offset:])
            if answer.status in (404, 410):
                # The first one was in the middle of it.
                assert case.point == "within-remove", answer
                return True
            assert answer.status == 204, answer
        return False

    def _check(
        self, case: Round, path: str, data: bytes, answers: list[Response], removed: bool
    ) -> None:
        upload_id = id_of(path)
        for tus in (self.first, self.second):
            if removed:
                assert tus.head(path).status == 410
                assert not (self.uploads / f"{upload_id}.info").exists()
                assert not (self.uploads / upload_id).exists()
            else:
                assert tus.head(path)["Upload-Offset"] == str(len(data))
                got = tus.get(path)
                assert (got.status, got.body == data) == (200, True), (case, got.status)
        kinds = {
            json.loads(found.read_bytes())["type"]
            for found in files_below(self.uploads / ".tusd-py" / "outbox")
            if found.name.startswith(f"{upload_id}.")
        }
        was_finished = not removed or self._was_finished
        was_finished = was_finished or (case.request != "delete" and 204 in _statuses(answers))
        assert ("post-finish" in kinds) is was_finished, (case, kinds, _statuses(answers))
        assert not removed or "post-terminate" in kinds, (case, kinds)


def _statuses(answers: list[Response]) -> list[int]:
    return [answer.status for answer in answers]


@contextmanager
def pair() -> Iterator[Pair]:
    """Two servers with a Redis, in a temporary directory."""
    with (
        tempfile.TemporaryDirectory() as directory,
        RedisServer(Path(directory) / "redis") as redis,
    ):
        servers = Pair(Path(directory), redis)
        try:
            yield servers
        finally:
            servers.close()


def main(arguments: list[str]) -> int:
    """Do rounds until one fails or all are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args(arguments)
    done: dict[str, int] = {}
    with pair() as servers:
        for number in range(options.count):
            dice = random.Random(f"{options.seed}/{number}")
            case = Round.of(dice)
            try:
                servers.do(case, dice)
            except AssertionError:
                sys.stderr.write(f"--seed {options.seed}, round {number}: {case}\n")
                raise
            done[case.point] = done.get(case.point, 0) + 1
    text = ", ".join(f"{point} {count}" for point, count in sorted(done.items()))
    sys.stdout.write(
        f"seed {options.seed}: {options.count} rounds, nothing lost or changed: {text}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
