"""Uploads through three servers to a bucket whose requests fail, while servers are killed: `python -m tests.s3.torture`.

Clients go on at any of the servers. A proxy before the bucket injects every kind of fault. In the end every upload has its
bytes, every event was delivered, and nothing is left in the bucket that a sweep does not remove.

`--faults` says how many are injected at least, `--seed` which; a failure tells its seed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from uuid import uuid4

from redis import Redis

from tests.crash.fleet import MIB, Broken, Client, Fleet, Upload
from tests.s3 import servers
from tests.s3.contents import Contents
from tests.s3.proxies import EVERY_FAULT, FaultProxy
from tests.s3.servers import BUCKET, ENVIRONMENT
from tests.support.events import HOOK_FILE
from tests.support.forked import Servers
from tests.support.jobs import Job
from tests.support.redis import RedisServer
from tests.support.server import PROGRAM, ServerProcess, environment
from tests.support.tus import Tus
from tests.support.waiting import wait_until
from tests.support.wire import Response
from tusd_py.redis import Keys

RATE = 0.2
"""Share of the requests to the bucket that meet a fault."""
CLIENTS = 8
LIFE = (0.5, 3.0)
"""Seconds between two kills."""
_NOISE = random.Random(18).randbytes(16 * MIB)
_AGAIN = {"ERR_UNAVAILABLE", "ERR_UPLOAD_LOCKED", "ERR_LOCKED", "ERR_UPLOAD_INTERRUPTED"}
"""Codes of responses after which a client asks for the offset and goes on."""
STUCK_SECONDS = 120.0
"""Time in which workers deliver at least one event."""
STAYS = (".tusd-py/gone/", ".tusd-py/finals/", ".tusd-py/swept", ".tusd-py/awaiting/")


@dataclass
class Seen:
    """What the clients met. codes: of responses that told them to come again."""

    codes: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, code: str) -> None:
        with self.lock:
            self.codes[code] = self.codes.get(code, 0) + 1


class Swarm(Fleet):
    """Clients of all servers."""

    def __init__(self, seed: int, servers: Servers, proxy: FaultProxy) -> None:
        super().__init__(cast(ServerProcess, servers.any(random.Random())), seed, CLIENTS)
        self.servers, self.proxy, self.seen = servers, proxy, Seen()
        self.finished: set[str] = set()
        """Ids of those whose finish is announced: not of parts."""

    def done(self, kind: str, upload: Upload, *, deleted: bool) -> None:
        super().done(kind, upload, deleted=deleted)
        self.finished.add(upload.id)

    def client(self, dice: random.Random) -> Client:
        return Wanderer(self, dice)


class Wanderer(Client):
    """A client that goes on at any server, and comes again when it is told to."""

    fleet: Swarm

    def _address(self) -> tuple[str, int]:
        return self.fleet.servers.any(self.dice).address

    def _content(self, at_most: int = 14 * MIB) -> memoryview:
        size = self.dice.choice(
            [
                self.dice.randint(1, 20_000),
                self.dice.randint(1, min(at_most, 4 * MIB)),
                self.dice.randint(min(at_most, 5 * MIB) - 10, at_most),
            ]
        )
        start = self.dice.randrange(len(_NOISE) - size)
        return memoryview(_NOISE)[start : start + size]

    def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: memoryview | None = None,
        claimed: str | None = None,
    ) -> Response:
        response = super()._send(method, path, headers, body, claimed)
        code = response.code if response.status >= 400 else ""
        is_head = method == "HEAD" and response.status == 423
        # A list that lags tells less than the client knows.
        lags = code == "ERR_MISMATCHED_OFFSET" and self.fleet.proxy.injected["lag"] > 0
        if is_head or response.status == 503 or code in _AGAIN or lags:
            self.fleet.seen.count(code or f"{method} {response.status}")
            self.hang_up()
            self._pause.wait(0.2)
            raise Broken
        return response

    def _offset(self, upload: Upload) -> int:
        offset = int(self._head(upload)["Upload-Offset"])
        # A list that lags tells less; what it lacks is sent again.
        least = 0 if self.fleet.proxy.injected["lag"] else upload.acked
        assert least <= offset <= upload.sent, (offset, upload.acked, upload.sent)
        upload.acked = offset
        return offset

    def _is_expected(self, offset: int, expected: set[int]) -> bool:
        is_behind = self.fleet.proxy.injected["lag"] > 0 and offset < min(expected)
        return is_behind or super()._is_expected(offset, expected)


class Torture:
    """One run."""

    def __init__(self, directory: Path, seed: int, stack: ExitStack) -> None:
        self.seed = seed
        self.directory = directory
        store = servers.shared("seaweedfs")
        redis = stack.enter_context(RedisServer(directory / "redis"))
        self.redis = stack.enter_context(Redis.from_url(redis.url))
        self.proxy = stack.enter_context(FaultProxy(store.address))
        prefix = f"{uuid4().hex}/"
        self.contents = Contents(store, prefix)
        self.events = directory / "events.jsonl"
        self.flags = (
            *("--s3-bucket", BUCKET, "--s3-endpoint", self.proxy.endpoint),
            *("--s3-part-size", "5MiB", "--s3-flush-interval", "300ms", "--s3-timeout", "4s"),
            *("--s3-object-prefix", prefix, "--s3-info-prefix", prefix),
            *("--redis-url", redis.url, "--lock-lease", "5s", "--hook", str(HOOK_FILE)),
            *("--hooks-delivery-backoff", "200ms"),
        )
        self.env = {
            **ENVIRONMENT,
            "RECORD_EVENTS": str(self.events),
            "HOLD_PRE_FINISH": str(directory / "no-hold"),
            "TUSD_UPLOAD_DIR": str(directory / "jobs"),
        }
        self.servers = Servers(directory, self.flags, self.env)
        stack.callback(self.servers.close)
        self.swarm = Swarm(seed, self.servers, self.proxy)
        self.delivered = "no events delivered"

    def run(self, faults: int, limit: float) -> None:
        """Inject so many faults, and let the clients come to their ends. limit: seconds for each."""
        dice = random.Random(f"{self.seed}/kills")
        deadline = time.monotonic() + limit
        self.proxy.inject(seed=self.seed, rate=RATE, kinds=EVERY_FAULT)
        with self.swarm as swarm:
            swarm.server_is_up()
            while self.proxy.injected.total() < faults:
                if swarm.failed.wait(dice.uniform(*LIFE)):
                    break
                assert time.monotonic() < deadline, f"{self.proxy.injected.total()} faults only"
                self.servers.kill_one(dice)
            self.proxy.inject(seed=self.seed, rate=0.0)
            swarm.finish(limit)
            assert not swarm.failures, "\n".join(swarm.failures)
        self._check_bytes()
        self._settle()
        self._check_events()
        self._check_contents()

    def _check_bytes(self) -> None:
        tus: Tus = self.servers.any(random.Random(1)).client()
        for upload in self.swarm.kept:
            assert tus.get(upload.path).body == bytes(upload.content), upload.path

    def _settle(self) -> None:
        """Expire what no client was told of, and deliver all events.

        The former comes first: a server that was killed before a finish has recorded its event, which waits for the upload
        to be finished after all, and goes with it.
        """
        locks = f"{Keys().prefix}lock:*"
        wait_until(lambda: not self.redis.keys(locks), "the leases of killed servers to end")
        self._sweep()
        began, events = time.monotonic(), len(self._waiting())
        jobs = [Job(name, *self.flags, env=self.env) for name in ("worker", "scheduler")]
        try:
            self._await_delivery()
        finally:
            for job in jobs:
                job.close()
        self.delivered = f"{events} events delivered in {time.monotonic() - began:.0f} s"

    def _await_delivery(self) -> None:
        """Wait until nothing is left in the outbox, for as long as it gets less."""
        waiting = self._waiting()
        deadline = time.monotonic() + STUCK_SECONDS
        while waiting:
            assert time.monotonic() < deadline, f"nobody delivers {sorted(waiting)}"
            # A look is a request to the store, which is busy with the delivery.
            time.sleep(0.3)
            left = self._waiting()
            if len(left) < len(waiting):
                deadline = time.monotonic() + STUCK_SECONDS
            waiting = left

    def _check_events(self) -> None:
        """Somebody was told of each finish and each removal that clients know of."""
        lines = [json.loads(line) for line in self.events.read_text().splitlines()]
        told = {(line["type"], line["upload"]) for line in lines}
        for name in self.swarm.deleted:
            assert ("post-terminate", name) in told, f"nobody was told that {name} was removed"
        for name in self.swarm.finished:
            assert ("post-finish", name) in told, f"nobody was told that {name} was finished"

    def _waiting(self) -> set[str]:
        """The keys of the events in the outbox."""
        return self.contents.keys(below=".tusd-py/outbox/")

    def _check_contents(self) -> None:
        # Parts expire like unfinished uploads once they are joined.
        partials = {upload.id for upload in self.swarm.kept if upload.id not in self.swarm.finished}
        kept = {upload.id for upload in self.swarm.kept} - partials
        self.contents.tidy()
        found = self.contents.keys()
        left = {key for key in found if not key.startswith(STAYS)}
        expected = {*kept, *(f"{name}.info" for name in kept)}
        seen = self._finished_unseen() | kept | partials
        assert {key.removesuffix(".info") for key in left} <= seen
        assert left >= expected, sorted(expected - left)
        assert self.contents.pending() == set()

    def _finished_unseen(self) -> set[str]:
        """Uploads that were finished and whose client got no response: those created with all their bytes."""
        return {
            line["upload"]
            for line in map(json.loads, self.events.read_text().splitlines())
            if line["type"] == "post-finish"
        }

    def _sweep(self) -> None:
        command = [*PROGRAM, "sweep", "--force", *self.flags, "--expire-after", "1ms"]
        done = subprocess.run(
            command,
            env=environment(self.env),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def counts(self) -> str:
        """What happened, for the one who runs it."""
        tally, injected = self.swarm.tally, self.proxy.injected
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(injected.items()))
        return (
            f"seed {self.seed}: {injected.total()} faults ({kinds}) in {self.proxy.requests.total()} requests, "
            f"{self.servers.kills} kills, {tally.uploads} uploads, {tally.bytes_verified / 1e6:.0f} MB verified, "
            f"{tally.broken} broken connections, {tally.corrupt} corrupt chunks, told to come again: {self.swarm.seen.codes}, "
            f"{self.delivered}"
        )


def torture(faults: int, seed: int, *, limit: float) -> str:
    """Run once and return the counts. Raises AssertionError where something was lost, left or not told."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        run = Torture(Path(directory), seed, stack)
        try:
            run.run(faults, limit)
        except BaseException:
            sys.stderr.write("\n".join([run.counts(), *run.servers.complaints()]) + "\n")
            raise
        return run.counts()


def main(arguments: list[str]) -> int:
    """Run once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--faults", type=int, default=2000)
    parser.add_argument("--limit", type=float, default=3600.0)
    options = parser.parse_args(arguments)
    sys.stdout.write(torture(options.faults, options.seed, limit=options.limit) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
