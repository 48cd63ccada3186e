"""kill -9 of servers, workers and the scheduler at random while uploads finish: every finish is announced, and nothing else."""

from __future__ import annotations

import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import pytest

from tests.crash.test_kill9 import quiet_port
from tests.hooks.endpoint import Call, Endpoint, Reply
from tests.support.files import files_below
from tests.support.jobs import Job
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import OCTETS, id_of, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection, Response

UPLOADS = int(os.environ.get("TUSD_TEST_DELIVERIES", "500"))
SEED = int(os.environ.get("TUSD_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
CLIENTS = 8
LENGTH = 6
PAUSE = 0.25
"""Seconds that a client waits between two uploads, as all would be over before anybody is killed."""
KILLS = int(os.environ.get("TUSD_TEST_DELIVERY_KILLS", "30"))
LIFE = (0.3, 1.2)
"""Seconds between two kills. What is killed takes about one to be there again."""
FAILS = 0.05
"""Part of the calls that the endpoint answers with 503."""
QUIET = 90.0
"""Seconds in which everything has to be told once nobody is killed any more."""

pytestmark = [pytest.mark.xdist_group("crash"), pytest.mark.timeout(400)]


class Unsteady(Endpoint):
    """Fails at times."""

    def __init__(self) -> None:
        super().__init__()
        self._dice = random.Random(SEED)
        self.answered: list[Call] = []

    def reply_to(self, call: Call) -> Reply:
        reply = super().reply_to(call)
        if self._dice.random() < FAILS:
            return Reply(503)
        self.answered.append(call)
        return reply


@dataclass
class Clients:
    """The clients' knowledge: finished uploads, and those left unfinished."""

    servers: list[ServerProcess]
    finished: list[str] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)

    def run(self, number: int) -> None:
        """Run one client's part of the uploads."""
        dice = random.Random(f"{SEED}/{number}")
        pause = threading.Event()
        while len(self.finished) < UPLOADS:
            path = self._create(dice)
            if dice.random() < 0.1:
                self.abandoned.append(id_of(path))
            else:
                self._send_rest(path, dice)
                self.finished.append(id_of(path))
            pause.wait(dice.uniform(0, 2 * PAUSE))

    def _create(self, dice: random.Random) -> str:
        headers = {"Upload-Length": str(LENGTH), "Content-Type": OCTETS}
        while True:
            response = self._send(dice, "POST", "/files/", headers, b"abc")
            if response is not None and response.status == 201:
                return path_of(response["Location"])

    def _send_rest(self, path: str, dice: random.Random) -> None:
        offset: int | None = None
        while offset != LENGTH:
            if offset is None:
                response = self._send(dice, "HEAD", path, {}, b"")
            else:
                headers = {"Upload-Offset": str(offset), "Content-Type": OCTETS}
                response = self._send(dice, "PATCH", path, headers, b"abcdef"[offset:])
            told = response is not None and response.status in (200, 204)
            offset = int(response["Upload-Offset"]) if told and response is not None else None

    def _send(
        self, dice: random.Random, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> Response | None:
        """The answer of a server, whichever; None if there is none."""
        try:
            with Connection(dice.choice(self.servers).address, timeout=60) as connection:
                return connection.request(method, path, {"Tus-Resumable": "1.0.0", **headers}, body)
        except (ConnectionError, TimeoutError):
            threading.Event().wait(0.05)
            return None


@dataclass
class Estate:
    """The processes, each of which can be killed and started again. kills: by what they are."""

    servers: list[ServerProcess]
    start_job: Callable[[str], Job]
    jobs: dict[str, Job] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)

    def start(self) -> None:
        for server in self.servers:
            server.start()
        for name in ("worker 1", "worker 2", "scheduler"):
            self.jobs[name] = self.start_job(name.split()[0])

    def kill_one(self, dice: random.Random) -> None:
        """Kills one at random, and starts it again."""
        number = dice.randrange(len(self.servers) + len(self.jobs))
        if number < len(self.servers):
            self.servers[number].kill9()
            self.servers[number].launch()
            self.kills["server"] += 1
            return
        name = [*self.jobs][number - len(self.servers)]
        kind = name.split()[0]
        self.jobs[name].close()
        self.jobs[name] = self.start_job(kind)
        self.kills[kind] += 1

    def close(self) -> None:
        for job in self.jobs.values():
            job.close()
        for server in self.servers:
            server.close()


@contextmanager
def estate(room: Path, endpoint: Endpoint) -> Iterator[Estate]:
    with RedisServer(room / "redis") as redis:
        env = {
            "TUSD_REDIS_URL": redis.url,
            "TUSD_HOOKS_HTTP": endpoint.url,
            "TUSD_HOOKS_HTTP_RETRY": "1",
            "TUSD_HOOKS_DELIVERY_BACKOFF": "200ms",
            "TUSD_HOOKS_DELIVERY_ATTEMPTS": "100",
            "TUSD_LOCK_LEASE": "2s",
            "TUSD_SWEEP_INTERVAL": "3s",
            "TUSD_DURABILITY": "none",
        }
        uploads = room / "uploads"
        servers = [ServerProcess(uploads, env=env, port=quiet_port()) for _ in range(2)]
        where = ("--upload-dir", str(uploads))
        running = Estate(servers, lambda name: Job(name, *where, env=env))
        try:
            running.start()
            yield running
        finally:
            running.close()


def test_every_upload_that_finished_is_announced_and_no_other(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    print(f"seed {SEED}")
    began = monotonic()
    dice = random.Random(SEED)
    with (
        Unsteady() as endpoint,
        estate(tmp_path, endpoint) as running,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        clients = Clients(running.servers)
        work = [pool.submit(clients.run, number) for number in range(CLIENTS)]
        pause = threading.Event()
        while running.kills.total() < KILLS and not all(each.done() for each in work):
            pause.wait(dice.uniform(*LIFE))
            running.kill_one(dice)
        for each in work:
            each.result()
        # What lives now goes on living.
        quiet_since = monotonic()
        expected = finished_on_disk(tmp_path / "uploads") | set(clients.finished)

        def told() -> set[str]:
            return {call.upload["ID"] for call in endpoint.answered if call.type == "post-finish"}

        wait_until(lambda: expected <= told(), "post-finish of all", QUIET)
        took = monotonic() - quiet_since
        wait_until(lambda: not waiting(tmp_path / "uploads"), "an empty outbox", QUIET)
        assert finished_on_disk(tmp_path / "uploads") == told()
        assert not told() & set(clients.abandoned)
        assert_in_order(endpoint)
        calls = [call for call in endpoint.calls if call.type == "post-finish"]
    record_property(
        "delivery and kill -9",
        f"{len(expected)} uploads finished and {len(clients.abandoned)} did not, with seed {SEED}; "
        f"kills: {dict(running.kills)}; post-finish told of {len(told())} uploads, of none unfinished, in "
        f"{len(calls)} calls, of which {len(calls) - len(set(map(identity, calls)))} were repeats; the last "
        f"{took:.1f} s after the last upload; {monotonic() - began:.0f} s",
    )
    assert len(expected) >= UPLOADS


def finished_on_disk(uploads: Path) -> set[str]:
    """The finished uploads according to the storage."""
    found: set[str] = set()
    for file in uploads.glob("*.info"):
        # Sweeps remove what creations have left that were cut short.
        with suppress(FileNotFoundError):
            text = file.read_text()
            if text and (record := json.loads(text))["TusdPy"]["FinishedAt"]:
                found.add(record["ID"])
    return found


def waiting(uploads: Path) -> list[Path]:
    return files_below(uploads / ".tusd-py" / "outbox")


def identity(call: Call) -> str:
    return call.headers["hook-event-id"]


def assert_in_order(endpoint: Unsteady) -> None:
    """The finish of an upload is not told before its creation was taken."""
    created: set[str] = set()
    for call in endpoint.answered:
        if call.type == "post-create":
            created.add(call.upload["ID"])
        elif call.type == "post-finish":
            assert call.upload["ID"] in created, f"{call.upload['ID']} was finished first"
