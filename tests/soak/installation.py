"""The servers of a run and what they need: a store, a Redis, a worker, a scheduler, an endpoint for hooks, proxies before them.

Nothing here goes wrong by itself: see `faults`.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path

from tests.auth.people import SECRET
from tests.hooks.endpoint import Call, Endpoint, Reply
from tests.soak import facts
from tests.soak.history import EVENTS, History
from tests.soak.model import Violation
from tests.soak.stores import Store
from tests.support.faults import FaultProxy
from tests.support.forked import ForkedCommand, ForkedServer, Servers
from tests.support.redis import RedisServer

LEASE_SECONDS = 1.5
_COMMAND_SECONDS = 600.0
"""In which a command has to end. A sweep removes everything unfinished, which takes a bucket minutes."""
_LATER_SECONDS = 10 * 86_400.0
"""Longer than any clock was ahead, and shorter than removed uploads are remembered."""


class HookEndpoint(Endpoint):
    """Notes every event that comes in. away: how it answers while it is to fail, None if it works."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.away: Reply | None = None
        self.missed = 0
        self.failures: list[str] = []
        self._history = history

    def reply_to(self, call: Call) -> Reply:
        if (away := self.away) is not None:
            self.missed += 1
            return away
        upload_id = str(call.upload["ID"])
        event_id = call.headers.get("hook-event-id", "")
        try:
            self._history.note(EVENTS, facts.Announced(call.type, upload_id, event_id))
        except Violation as violation:
            self.failures.append(str(violation))
        return Reply()


class Installation:
    """Running, until the stack that it is made with is closed."""

    def __init__(
        self, directory: Path, store: Store, history: History, count: int, stack: ExitStack
    ) -> None:
        self.store = store
        self.redis = stack.enter_context(RedisServer(directory / "redis", persistent=True))
        self.endpoint = stack.enter_context(HookEndpoint(history))
        self.flags = self._flags()
        self.env = {
            **store.env,
            "TUSD_JWT_SECRET": SECRET,
            "TUSD_DUPLICATES": "on",
            **({"TUSD_UPLOAD_DIR": str(store.upload_dir)} if store.upload_dir else {}),
        }
        self.servers = Servers(
            history.directory, self.flags, self.env, count=count, upload_dir=store.upload_dir
        )
        stack.callback(self.servers.close)
        self.proxies = [
            stack.enter_context(FaultProxy(server.address)) for server in self.servers.running
        ]
        self._directory = history.directory
        self._number = 0
        self.jobs: dict[str, ForkedCommand] = {}
        for name in ("worker", "scheduler"):
            self.start_job(name)
        stack.callback(self._close_jobs)

    def _flags(self) -> tuple[str, ...]:
        events = "post-create,post-finish,post-terminate,post-expire"
        return (
            *("--redis-url", self.redis.url, "--redis-timeout", "3s", "--auth", "jwt"),
            *("--lock-lease", f"{LEASE_SECONDS}s", "--acquire-lock-timeout", "3s"),
            *("--duplicates-when-unavailable", "refuse", "--duplicates-pending-grace", "1s"),
            *("--upload-token-ttl", "2s", "--upload-token-refreshes", "1000000"),
            *("--network-timeout", "4s", "--sweep-interval", "10s"),
            *("--hooks-http", self.endpoint.url, "--hooks-enabled-events", events),
            *("--hooks-http-retry", "1", "--hooks-http-timeout", "3s"),
            *("--hooks-delivery-backoff", "200ms", "--hooks-delivery-attempts", "100"),
            *self.store.flags,
        )

    @property
    def witness(self) -> ForkedServer:
        """The server that is never killed."""
        return self.servers.running[0]

    def address(self, dice: random.Random) -> tuple[str, int]:
        """That of any server, by way of its proxy."""
        return dice.choice(self.proxies).address

    def replace(self, place: int, following: ForkedServer) -> None:
        """Kill a server, and have another in its place."""
        self.servers.replace(place, following)
        self.proxies[place].target = following.address

    def start_job(self, name: str) -> None:
        """Start the worker or the scheduler, and kill the one that runs."""
        if name in self.jobs:
            self.jobs[name].kill9()
        self._number += 1
        place = self._directory / f"server-{name}-{self._number}"
        self.jobs[name] = ForkedCommand(place, name, *self.flags, env=self.env)

    def sweep(self) -> None:
        """Sweep by the command. An upload that is removed while it is looked at is no failure."""
        self._command("sweep", *self.flags)

    def sweep_later(self) -> None:
        """Sweep as after ten days: also what a clock that was ahead made younger, and what crashes left."""
        self._command(
            *("sweep", "--force", *self.flags, "--expire-after", "1ms"), ahead=_LATER_SECONDS
        )

    def _command(self, *arguments: str, ahead: float = 0.0) -> None:
        self._number += 1
        place = self._directory / f"command-{self._number}"
        ForkedCommand(place, *arguments, env=self.env, ahead=ahead).wait(_COMMAND_SECONDS)

    def _close_jobs(self) -> None:
        for job in self.jobs.values():
            job.kill9()


def descriptors(server: ForkedServer) -> int:
    """How many a server has open."""
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def memory(server: ForkedServer) -> int:
    """Bytes of memory that a server shares with nobody."""
    rollup = Path(f"/proc/{server.pid}/smaps_rollup").read_text()
    [line] = [line for line in rollup.splitlines() if line.startswith("Private_Dirty:")]
    return int(line.split()[1]) * 1024
