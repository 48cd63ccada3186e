"""Does to the servers, and to what they need, what plans say. A fault counts once it was really applied.

Nothing waits: what takes time is begun, and ended by a later `tick`. Of what there is once, one thing is wrong at a time.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from redis.exceptions import BusyLoadingError

from tests.hooks.endpoint import Reply
from tests.soak import facts
from tests.soak.history import FAULTS, History
from tests.soak.installation import LEASE_SECONDS, Installation
from tests.soak.plan import NETWORK, FaultPlan, Kind, Network
from tests.soak.stores import FileStore
from tests.support.control import Failing
from tests.support.faults import Link, Plan, Way
from tests.support.forked import ForkedCommand, ForkedServer
from tests.support.redis import RedisServer
from tests.support.server import START_TIMEOUT
from tests.support.waiting import wait_until

_MOST_PLANNED = 6
"""Plans that wait at a proxy for a connection."""
_SETTLES_SECONDS = 5.0
"""How long a server may take to act upon a call that has failed."""
_SHIFTS = (7_200.0, 30 * 3_600.0, -2_900.0, 9 * 86_400.0, -3 * 86_400.0)
"""Seconds by which a clock jumps: what expires does so after seven days, tokens after seconds."""

Undo = Callable[[], bool]
"""Ends a fault; returns whether it was applied."""


@dataclass(frozen=True)
class NetworkPlan(Plan):
    """What happens to a connection, by the kind of fault that it is."""

    kind: Network = "reset"
    released_after: float = 0.0


@dataclass
class Running:
    """A fault that is not over. room: what it happens to."""

    plan: FaultPlan
    room: str
    until: float
    undo: Undo


class Faults:
    """applied: how many faults, by kind."""

    def __init__(self, installation: Installation, history: History) -> None:
        self.applied: Counter[Kind] = Counter()
        self.failing_until = 0.0
        """Until when requests may be answered with a 500."""
        self._site = installation
        self._history = history
        self._running: list[Running] = []
        self._links: list[Link] = []
        self._stalled: list[tuple[float, Link]] = []
        self._notes: list[tuple[float, Kind]] = []
        self._starting: tuple[int, ForkedServer, float] | None = None

    def apply(self, plan: FaultPlan) -> None:
        """Begin a fault, unless what it happens to is not as it should be already."""
        if plan.kind in NETWORK:
            self._plan_connection(plan)
            return
        room = self._room(plan)
        busy = {running.room for running in self._running}
        if room in busy or (plan.kind == "kill server" and self._starting is not None):
            return
        # It could not end, and nobody would let the disk go on.
        if plan.kind == "kill worker" and "disk" in busy:
            return
        undo = self._begin(plan)
        if undo is not None:
            lasts = plan.lasts + (LEASE_SECONDS if plan.kind.startswith("stop") else 0.0)
            self._running.append(Running(plan, room, time.monotonic() + lasts, undo))

    def tick(self) -> None:
        """End what is over, and count what was applied."""
        now = time.monotonic()
        for running in [each for each in self._running if each.until <= now]:
            self._end(running)
        self._swap_server()
        self._look_at_links(now)
        for at, kind in [each for each in self._notes if each[0] <= now]:
            self._notes.remove((at, kind))
            self._note(kind, ends=True)

    def end(self) -> None:
        """End everything."""
        for running in list(self._running):
            self._end(running)
        deadline = time.monotonic() + START_TIMEOUT
        while self._starting is not None and time.monotonic() < deadline:
            self._swap_server()
            time.sleep(0.01)
        for proxy in self._site.proxies:
            proxy.drop_plans()
        self._look_at_links(float("inf"))

    # -- machines and what runs on them --------------------------------------------------------

    def _room(self, plan: FaultPlan) -> str:
        """What a fault happens to."""
        kind = plan.kind
        if kind in ("kill server", "stop server", "EIO on write", "disk lost bytes"):
            # A server that stands still would lose bytes at any time later.
            return f"server {self._place(plan)}"
        if kind.endswith("worker"):
            return "worker"
        return kind.split()[0]

    def _place(self, plan: FaultPlan) -> int:
        """The server that it happens to; the first one is never killed."""
        count = len(self._site.servers.running)
        if plan.kind == "kill server":
            return 1 + plan.place % (count - 1) if count > 1 else 0
        return plan.place % count

    def _begin(self, plan: FaultPlan) -> Undo | None:
        """Begin it; None if it is over already, or cannot be had."""
        kind, redis, place = plan.kind, self._site.redis, self._place(plan)
        server = self._site.servers.running[place]
        match kind:
            case "kill server":
                deadline = time.monotonic() + START_TIMEOUT
                self._starting = place, self._site.servers.start_another(), deadline
                return None
            case "stop server":
                return self._stop(kind, server)
            case "kill worker":
                self._site.start_job(("worker", "scheduler")[plan.place % 4 == 0])
                self._count(kind)
                return None
            case "stop worker":
                return self._stop(kind, self._site.jobs["worker"])
            case "clock":
                return self._shift(plan, server)
            case "EIO on write" | "disk lost bytes":
                return self._fail_calls(plan, server)
            case "disk full" | "disk stalls":
                return self._spoil_disk(kind)
            case "hooks away" | "hooks refuse":
                return self._take_hooks_away(kind)
            case _:
                return self._break_redis(kind, redis)

    def _stop(self, kind: Kind, process: ForkedCommand) -> Undo:
        self._note(kind, str(process.pid))
        process.stop()

        def undo() -> bool:
            process.resume()
            self._note(kind, str(process.pid), ends=True)
            return not process.has_ended

        return undo

    def _shift(self, plan: FaultPlan, server: ForkedServer) -> Undo:
        process: ForkedCommand = self._site.jobs["worker"] if plan.place % 5 == 0 else server
        shift = _SHIFTS[plan.amount % len(_SHIFTS)]
        self._note("clock", f"{process.pid} {shift:+.0f}")
        process.page.shift = shift

        def undo() -> bool:
            process.page.shift = 0.0
            self._note("clock", str(process.pid), ends=True)
            return not process.has_ended

        return undo

    def _fail_calls(self, plan: FaultPlan, server: ForkedServer) -> Undo:
        call: Failing = "write" if plan.kind == "EIO on write" else "sync"
        before = server.page.failed(call)
        self.failing_until = float("inf")
        self._note(plan.kind, str(server.pid))
        server.page.fail(call, 1 + plan.amount % 3)

        def undo() -> bool:
            server.page.give_up(call)
            self.failing_until = time.monotonic() + START_TIMEOUT
            self._notes.append((time.monotonic() + _SETTLES_SECONDS, plan.kind))
            return server.page.failed(call) > before

        return undo

    def _spoil_disk(self, kind: Kind) -> Undo | None:
        store = self._site.store
        if not isinstance(store, FileStore) or store.disk is None:
            return None
        disk = store.disk
        self._note(kind)
        if kind == "disk full":
            disk.fill()
        else:
            subprocess.run(["fsfreeze", "-f", str(disk.root)], check=True, timeout=60)

        def undo() -> bool:
            if kind == "disk full":
                disk.empty()
            else:
                subprocess.run(["fsfreeze", "-u", str(disk.root)], check=True, timeout=60)
            self._note(kind, ends=True)
            return True

        return undo

    def _take_hooks_away(self, kind: Kind) -> Undo:
        endpoint = self._site.endpoint
        before = endpoint.missed
        self._note(kind)
        endpoint.away = Reply(cut=True) if kind == "hooks away" else Reply(503)

        def undo() -> bool:
            endpoint.away = None
            self._note(kind, ends=True)
            return endpoint.missed > before

        return undo

    def _break_redis(self, kind: Kind, redis: RedisServer) -> Undo | None:
        self._note(kind)
        steps: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "redis killed": (redis.kill9, redis.start),
            "redis paused": (redis.pause, redis.resume),
            "redis flushed": (lambda: _tell(redis, "FLUSHALL"), lambda: None),
            "redis read-only": (
                lambda: _tell(redis, "REPLICAOF", "127.0.0.1", "1"),
                lambda: _tell(redis, "REPLICAOF", "NO", "ONE"),
            ),
            "redis without replicas": (
                lambda: _tell(redis, "CONFIG", "SET", "min-replicas-to-write", "1"),
                lambda: _tell(redis, "CONFIG", "SET", "min-replicas-to-write", "0"),
            ),
        }
        begin, end = steps[kind]
        begin()

        def undo() -> bool:
            end()
            self._note(kind, ends=True)
            return True

        if kind == "redis flushed":
            self._count(kind, applied=undo())
            return None
        return undo

    def _end(self, running: Running) -> None:
        self._running.remove(running)
        self._count(running.plan.kind, applied=running.undo())

    def _swap_server(self) -> None:
        """Kill the server whose follower is ready; not while its disk stalls, as it could not end."""
        if self._starting is None or any(each.room == "disk" for each in self._running):
            return
        place, following, deadline = self._starting
        if following.is_up():
            self._note("kill server", str(self._site.servers.running[place].pid))
            self._site.replace(place, following)
            self._starting = None
            self._count("kill server")
        else:
            assert time.monotonic() < deadline, f"a server does not start:\n{following.log()}"

    # -- connections ---------------------------------------------------------------------------

    def _plan_connection(self, plan: FaultPlan) -> None:
        proxy = self._site.proxies[plan.place % len(self._site.proxies)]
        if proxy.planned < _MOST_PLANNED:
            proxy.plan(_network(plan))

    def _look_at_links(self, now: float) -> None:
        for proxy in self._site.proxies:
            self._links += proxy.take_links()
        open_links = []
        for link in self._links:
            plan = link.plan
            if link.closed.is_set():
                if isinstance(plan, NetworkPlan) and _was_applied(link, plan.kind):
                    self.applied[plan.kind] += 1
            else:
                open_links.append(link)
                if isinstance(plan, NetworkPlan) and link.stalled.is_set():
                    self._release_later(link, plan, now)
        self._links = open_links
        for until, link in list(self._stalled):
            if until <= now:
                link.release()
                self._stalled.remove((until, link))

    def _release_later(self, link: Link, plan: NetworkPlan, now: float) -> None:
        if not link.released and all(each is not link for _, each in self._stalled):
            self._stalled.append((now + plan.released_after, link))

    # -- counting ------------------------------------------------------------------------------

    def _count(self, kind: Kind, *, applied: bool = True) -> None:
        self.applied[kind] += applied

    def _note(self, kind: Kind, detail: str = "", *, ends: bool = False) -> None:
        self._history.note(FAULTS, facts.Fault(kind, detail, ends))


def _tell(redis: RedisServer, *command: str) -> None:
    """Have a command carried out, once a Redis that was just started has read its data."""

    def is_done() -> bool:
        try:
            redis.command(*command)
        except BusyLoadingError:
            return False
        return True

    wait_until(is_done, " ".join(command))


def _network(plan: FaultPlan) -> NetworkPlan:
    """The plan for a connection."""
    at = plan.amount
    # Responses are short, but for downloads.
    early = at % 400
    ways: dict[Kind, tuple[Way, Way]] = {
        "reset": (Way(cut_after=at, cut="rst"), Way()),
        "end": (Way(cut_after=at), Way()),
        "cut response": (Way(), Way(cut_after=early, cut="rst" if at % 2 else "fin")),
        "stall": (Way(stall_after=at), Way()) if at % 3 else (Way(), Way(stall_after=early)),
        "half-close": (Way(half_close_after=at), Way()),
        "slow": (Way(rate=100_000.0), Way(rate=200_000.0)),
    }
    up, down = ways[plan.kind]
    released_after = 0.5 + 4 * plan.lasts
    return NetworkPlan(up, down, kind=plan.kind, released_after=released_after)  # type: ignore[arg-type]


def _was_applied(link: Link, kind: Network) -> bool:
    match kind:
        case "stall":
            return link.stalled.is_set()
        case "half-close":
            return link.half_closed.is_set()
        case "slow":
            return link.up_bytes > 0
        case _:
            return link.cut.is_set()
