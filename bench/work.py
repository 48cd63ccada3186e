"""What the load generator is told to do, and what it reports: plain values that pass between two processes."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field


@dataclass(slots=True)
class Work:
    """What to do. kind: a key of `kinds.KINDS`; protocol: one of `dialects.DIALECTS`. Sizes in bytes, times in seconds; what
    a kind does not need stays 0.
    """

    kind: str
    protocol: str = "tus"
    port: int = 0
    base: str = "/files/"
    cpus: list[int] = field(default_factory=list)
    connections: int = 1
    length: int = 0
    chunk: int = 0
    checksum: bool = False
    seconds: float = 0.0
    requests: int = 0
    paths: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


@dataclass(slots=True)
class Latency:
    """Milliseconds."""

    count: int
    p50: float
    p99: float
    longest: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        """seconds: at least one."""
        ordered = sorted(seconds)
        return cls(
            count=len(ordered),
            p50=statistics.median(ordered) * 1000,
            p99=ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000,
            longest=ordered[-1] * 1000,
        )


@dataclass(slots=True)
class Done:
    """What was seen. units: bytes or requests or uploads, as the kind of work counts; paths: of uploads that were created."""

    seconds: float
    units: int
    cpu_seconds: float
    latencies: dict[str, Latency] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Done:
        """The opposite of `to_json`."""
        values = json.loads(text)
        latencies = {name: Latency(**found) for name, found in values.pop("latencies").items()}
        return cls(**values, latencies=latencies)
