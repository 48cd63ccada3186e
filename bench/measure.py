"""One measurement: a server on a directory, a load generator, and what the server's processes cost meanwhile."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from bench import processes
from bench.memory import Pool
from bench.processes import Snapshot, on_processors
from bench.results import Measurement
from bench.scenarios import GIB, MIB, Scenario
from bench.seeds import Seeds
from bench.servers import ROOT, HashAlone, Running, Server, StartFailed
from bench.work import Done, Work

_QUIET = 0.02
_QUIET_LIMIT = 1800.0
"""Seconds. A server that meets a million uploads for the first time may look through all of them."""
_COUNTED = 64 * MIB
"""Longest upload whose requests to an object store are counted."""
_CALM = 0.25
"""Processors that may be busy where the machine counts as calm."""


class MeasurementFailed(Exception):
    """There are no figures; the message says why."""


@dataclass(slots=True)
class Place:
    """Where and how measurements are made. work: directory for everything; the two sets of processors may overlap."""

    work: Path
    server_cpus: set[int]
    client_cpus: set[int]
    pool: Pool
    calm: float
    """Seconds to wait at most, before something is measured, for everything else on the machine to pause."""
    seeds: Seeds = field(init=False)

    def __post_init__(self) -> None:
        self.seeds = Seeds(self.work / "known")

    def cpus_for(self, scenario: Scenario) -> set[int]:
        """The processors that a server may use."""
        return self.server_cpus | self.client_cpus if scenario.beside else self.server_cpus


class LoadGenerator:
    """The other process: a context manager. See `load.py` for what the two say to each other."""

    def __init__(self, work: Work, cpus: set[int]) -> None:
        self._work = replace(work, cpus=sorted(cpus))
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.tell(self._work.to_json())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = cast("subprocess.Popen[str]", self._process)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                cast(IO[str], pipe).close()

    def tell(self, line: str) -> None:
        pipe = cast(IO[str], cast("subprocess.Popen[str]", self._process).stdin)
        pipe.write(f"{line}\n")
        pipe.flush()

    def expect(self, event: str) -> str:
        """Waits for `event`; returns what is said with it. Raises MeasurementFailed if something else is said."""
        line = cast(IO[str], cast("subprocess.Popen[str]", self._process).stdout).readline()
        said, _, rest = line.rstrip("\n").partition(" ")
        if said != event:
            raise MeasurementFailed(rest or "the load generator ended")
        return rest


def measure(place: Place, server: Server, scenario: Scenario, *, quick: bool) -> Measurement:
    """Never raises for what a server does: a measurement without figures says why."""
    work = scenario.quick if quick else scenario.work
    result = Measurement(server.name, scenario.name, 0)
    try:
        if isinstance(server, HashAlone):
            _hash_alone(place, work, result)
        else:
            _measure(place, server, scenario, work, result)
    except (MeasurementFailed, StartFailed, OSError) as problem:
        result.failure = str(problem)
    return result


def _measure(
    place: Place, server: Server, scenario: Scenario, work: Work, result: Measurement
) -> None:
    known = scenario.known
    if known:
        # The system's caches are to hold what a million uploads are on the disk.
        place.pool.release_all()
        _seed(place, server, known)
    directory = place.seeds.directory(server, known) if known else place.work / "uploads"
    if not known:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    try:
        log = place.work / f"{server.name}.log"
        with (
            server.begin(directory, counts=False),
            Running(server, directory, cpus=place.cpus_for(scenario), log=log) as running,
        ):
            missing = set(scenario.needs) - running.ask().extensions
            if missing:
                raise MeasurementFailed(f"does not offer {', '.join(sorted(missing))}")
            paths = place.seeds.paths(server, known) if known else []
            given = replace(
                work,
                port=running.port,
                base=server.base,
                protocol=server.protocol,
                paths=random.sample(paths, scenario.asked),
            )
            with LoadGenerator(given, place.client_cpus) as load:
                _run(place, running, load, scenario, result)
        if server.requests is not None:
            _count_requests(place, server, scenario, work, result)
    finally:
        if not known:
            shutil.rmtree(directory, ignore_errors=True)
        if scenario.volume:
            place.pool.grab()


def _count_requests(
    place: Place, server: Server, scenario: Scenario, work: Work, result: Measurement
) -> None:
    """Does some of the work again, with a proxy before the object store, which would disturb a measurement."""
    directory, log = place.work / "uploads", place.work / f"{server.name}.log"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    short = replace(work, length=min(work.length, _COUNTED), seconds=min(work.seconds, 1.0))
    with (
        server.begin(directory, counts=True),
        Running(server, directory, cpus=place.cpus_for(scenario), log=log) as running,
        LoadGenerator(
            replace(short, port=running.port, base=server.base, protocol=server.protocol),
            place.client_cpus,
        ) as load,
    ):
        load.expect("ready")
        _wait_until_quiet(running.pid, 0.2)
        before = server.requests or 0
        load.tell("go")
        done = Done.from_json(load.expect("done"))
        uploads = done.units if scenario.counts == "uploads" else work.connections
        result.requests_each = ((server.requests or 0) - before) / uploads


def _run(
    place: Place, running: Running, load: LoadGenerator, scenario: Scenario, result: Measurement
) -> None:
    pid = running.pid
    load.expect("ready")
    # What was prepared is on the disk then, and nobody is charged for it later.
    os.sync()
    # Known uploads are swept at the start, with pauses.
    _wait_until_quiet(pid, 2.0 if scenario.known else 0.2)
    _wait_until_calm(place.calm)
    processes.forget_peaks(pid)
    memory = processes.memory(pid)
    if scenario.volume:
        # Whoever came before may have had it all.
        place.pool.grab()
        place.pool.release()
    before = Snapshot.take(pid)
    load.tell("go")
    if scenario.counts == "connections":
        load.expect("begun")
        before = Snapshot.take(pid)
    done = Done.from_json(load.expect("done"))
    after = Snapshot.take(pid)
    result.memory_each = (processes.memory(pid) - memory) / done.units
    result.peak_memory = processes.peak_memory(pid)
    load.tell("bye")
    _fill(result, scenario, done, before, after)


def _fill(
    result: Measurement, scenario: Scenario, done: Done, before: Snapshot, after: Snapshot
) -> None:
    cpu = after.server - before.server
    result.seconds, result.units = done.seconds, done.units
    per_second = done.units / done.seconds
    result.rate = per_second / 1e6 if scenario.counts == "bytes" else per_second
    if scenario.counts == "bytes":
        result.cpu = cpu / done.units * 1e9
    elif scenario.counts == "connections":
        result.rate = 0.0
        result.cpu = 100 * cpu / done.seconds
    else:
        result.cpu = cpu / done.units * 1e3
    if scenario.counts != "connections":
        result.memory_each = 0.0
    if scenario.latency in done.latencies:
        latency = done.latencies[scenario.latency]
        result.p50, result.p99 = latency.p50, latency.p99
    result.client_share = done.cpu_seconds / done.seconds
    elapsed = after.at - before.at
    others = after.machine - before.machine - cpu - done.cpu_seconds
    result.others_share = max(0.0, others / elapsed)


def _hash_alone(place: Place, work: Work, result: Measurement) -> None:
    size = min(work.length * work.connections, GIB)
    command = [sys.executable, "-m", "bench.floor", "hash", str(size)]
    with on_processors(place.server_cpus):
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, cpu = map(float, done.stdout.split())
    result.seconds, result.units = seconds, size
    result.rate, result.cpu = size / seconds / 1e6, cpu / size * 1e9


def _seed(place: Place, server: Server, count: int) -> None:
    """Makes the known uploads, once a run."""

    def create(requests: int, connections: int) -> list[str]:
        directory = place.seeds.directory(server, count)
        log = place.work / f"{server.name}.log"
        with Running(server, directory, cpus=place.server_cpus, log=log) as running:
            work = Work(
                "create",
                port=running.port,
                base=server.base,
                requests=requests,
                connections=connections,
                length=GIB,
            )
            with LoadGenerator(work, place.client_cpus) as load:
                load.expect("ready")
                load.tell("go")
                return Done.from_json(load.expect("done")).paths

    place.seeds.make(server, count, create)


def _wait_until_quiet(pid: int, seconds: float) -> None:
    """Until the server has done what it does at its start and after the warm-up. Raises MeasurementFailed if it never ends.

    seconds: for how long it must have done nothing.
    """
    deadline = time.monotonic() + _QUIET_LIMIT
    before = processes.cpu_seconds(pid)
    while time.monotonic() < deadline:
        time.sleep(seconds)
        now = processes.cpu_seconds(pid)
        if now - before < seconds * _QUIET:
            return
        before = now
    raise MeasurementFailed(f"it was still busy by itself after {_QUIET_LIMIT:.0f} s")


def _wait_until_calm(limit: float) -> None:
    deadline = time.monotonic() + limit
    busy = processes.busy_seconds()
    while time.monotonic() < deadline:
        time.sleep(0.3)
        now = processes.busy_seconds()
        if now - busy < 0.3 * _CALM:
            return
        busy = now
