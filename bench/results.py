"""What was measured, as values: one measurement, all of a run, medians. Written to and read from JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field


@dataclass(slots=True)
class Measurement:
    """One server, one scenario, one round.

    failure: why there are no figures. rate: MB/s, or uploads or requests a second. cpu: CPU seconds of the server's processes
    per GB, or CPU milliseconds per upload or request, or per cent of a processor (connections). Latencies in milliseconds,
    memory in bytes. requests_each: requests to an object store for an upload of at most 64 MiB. client_share: how busy the
    load generator was, 1 being all the time. others_share: processors that everything else on the machine kept busy meanwhile.
    """

    server: str
    scenario: str
    round: int
    failure: str = ""
    seconds: float = 0.0
    units: int = 0
    rate: float = 0.0
    cpu: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    peak_memory: int = 0
    memory_each: float = 0.0
    requests_each: float = 0.0
    client_share: float = 0.0
    others_share: float = 0.0


@dataclass(slots=True)
class Results:
    """A run. servers and left_out: by name, the version and the reason."""

    began: str
    machine: dict[str, str]
    options: dict[str, str]
    titles: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    scenarios: list[str] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    """Load averages before each round."""
    measurements: list[Measurement] = field(default_factory=list)

    def to_json(self) -> str:
        """Readable text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """The opposite of `to_json`."""
        values = json.loads(text)
        measurements = [Measurement(**found) for found in values.pop("measurements")]
        return cls(**values, measurements=measurements)

    def of(self, server: str, scenario: str) -> list[Measurement]:
        """The measurements with figures."""
        return [
            found
            for found in self.measurements
            if found.server == server and found.scenario == scenario and not found.failure
        ]

    def failure(self, server: str, scenario: str) -> str:
        """Why a server has no figures for a scenario; empty if it has, or was not measured."""
        reasons = [
            found.failure
            for found in self.measurements
            if found.server == server and found.scenario == scenario and found.failure
        ]
        return "" if self.of(server, scenario) or not reasons else reasons[-1]

    def servers_of(self, scenario: str) -> list[str]:
        """Servers with figures, in the order of the run."""
        return [name for name in self.titles if self.of(name, scenario)]

    def join(self, other: Results) -> None:
        """Takes in the measurements of another run of scenarios that this one does not have."""
        fresh = [name for name in other.scenarios if name not in self.scenarios]
        self.scenarios += fresh
        self.titles = {**self.titles, **other.titles}
        self.versions = {**self.versions, **other.versions}
        self.measurements += [found for found in other.measurements if found.scenario in fresh]


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """values: at least one."""
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])


def ratio(
    results: Results, scenario: str, names: tuple[str, str], figure: Callable[[Measurement], float]
) -> float | None:
    """The median of one server over that of another; None if either has none."""
    medians = []
    for name in names:
        found = results.of(name, scenario)
        medians.append(Spread.of(map(figure, found)).median if found else 0.0)
    return medians[0] / medians[1] if all(medians) else None
