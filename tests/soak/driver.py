"""Runs clients against servers while faults are applied, and checks everything in the end."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.soak.checks import Size, check_all
from tests.soak.clients import Clients, Site
from tests.soak.faults import Faults
from tests.soak.history import History
from tests.soak.installation import Installation
from tests.soak.model import Model
from tests.soak.plan import FaultPlans
from tests.soak.stores import STORES

_TICK_SECONDS = 0.01
_WARM_UPLOADS = 12
"""Uploads before the size of a server is measured."""
_FINISH_SECONDS = 300.0
_REPORT_SECONDS = 30.0


@dataclass(frozen=True)
class Options:
    """Of one run. faults: how many at least. minutes: in which they are to be applied, and after which it gives up."""

    faults: int
    minutes: float
    store: str = "file"
    servers: int = 3
    seed: int = 1
    clients: int = 28
    history: Path | None = None


class Soak:
    """One run."""

    def __init__(self, options: Options, directory: Path, stack: ExitStack) -> None:
        self._options = options
        self._began = time.monotonic()
        self._store = STORES[options.store](directory, stack)
        self.model = Model(self._store.part)
        history = History(options.history or directory / "history", self.model)
        stack.callback(history.close)
        self.site = Installation(directory, self._store, history, options.servers, stack)
        self.faults = Faults(self.site, history)
        shared = Site(self.site.address, self._may_fail, history, self._store.patience_seconds)
        self.clients = Clients(options.seed, options.clients, shared, self._store.largest)
        stack.callback(self.clients.close)
        self._before = self._after = Size(0, 0)

    def run(self) -> None:
        """Apply the faults, let the clients finish, and check. Raises AssertionError."""
        for server in self.site.servers.running:
            server.wait_until_up()
        self.clients.start()
        self._warm_up()
        # Before the first one nobody can tell that a clock is wrong.
        self.site.sweep()
        self._before = Size.of(self.site.witness)
        self._store.inject(self._options.seed, fails=True)
        try:
            self._apply_faults()
        finally:
            self._store.inject(0, fails=False)
            self.faults.end()
        self.clients.finish(_FINISH_SECONDS)
        self.faults.tick()
        assert not self.clients.failures, "\n".join(self.clients.failures)
        self._after = check_all(self.site, self.model, self.clients, self._before)

    def _warm_up(self) -> None:
        while self._uploads() < _WARM_UPLOADS and not self.clients.failed.wait(_TICK_SECONDS):
            pass

    def _apply_faults(self) -> None:
        options = self._options
        seconds = options.minutes * 60
        # As fast as there is something to apply them to, if that is slower.
        plans = FaultPlans(options.seed, 0.5 * seconds / options.faults, self._store.without)
        began, report_at, due = time.monotonic(), time.monotonic() + _REPORT_SECONDS, 0.0
        while self.total() < options.faults and not self.clients.failed.wait(_TICK_SECONDS):
            now = time.monotonic() - began
            if now > seconds:
                break
            while due <= now:
                plan = next(plans)
                due += plan.after
                self.faults.apply(plan)
            self.faults.tick()
            if time.monotonic() > report_at:
                report_at += _REPORT_SECONDS
                print(self.counts(), flush=True)

    def _may_fail(self) -> bool:
        return time.monotonic() < self.faults.failing_until or self._options.store == "s3"

    def total(self) -> int:
        """How many faults were applied."""
        return self.faults.applied.total() + sum(self._store.faults().values())

    def _uploads(self) -> int:
        return sum(client.uploads for client in self.clients.all)

    def counts(self) -> str:
        """What happened, for the one who runs it."""
        kinds: Counter[str] = Counter(self._store.faults())
        kinds.update({str(kind): count for kind, count in self.faults.applied.items()})
        seen: Counter[str] = Counter()
        for client in self.clients.all:
            seen += client.line.seen
        facts = self.model.counts
        megabytes = sum(client.bytes_verified for client in self.clients.all) / 1e6
        summary = (
            f"seed {self._options.seed}, {self._options.store}, {self._options.servers} servers, "
            f"{time.monotonic() - self._began:.0f} s: {self.total()} faults, {self._uploads()} uploads, "
            f"{megabytes:.0f} MB verified, {facts['Created']} creations, {facts['Refused']} refused duplicates, "
            f"{facts['Announced']} events, size of the first server {self._before} and {self._after}"
        )
        return "\n".join((summary, f"faults: {_listed(kinds)}", f"seen: {_listed(seen)}"))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def soak(options: Options) -> Soak:
    """Run once, for its counts. Raises AssertionError where something is not as clients were told."""
    with tempfile.TemporaryDirectory(prefix="soak-") as directory, ExitStack() as stack:
        run = Soak(options, Path(directory), stack)
        try:
            run.run()
        except BaseException:
            sys.stderr.write(
                "\n".join([run.counts(), *run.site.servers.complaints()[-120:]]) + "\n"
            )
            raise
        return run


def main(arguments: list[str]) -> int:
    """Run once."""
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--faults", type=int, default=1000, help="how many to apply")
    parser.add_argument("--minutes", type=float, default=10.0, help="in which time")
    parser.add_argument("--store", choices=[*STORES], default="file")
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--clients", type=int, default=28)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--history", type=Path, help="where to keep what happened, as JSON lines")
    # What is mounted is unmounted, and the servers end, however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options = Options(**vars(parser.parse_args(arguments)))
    print(soak(options).counts())
    return 0
