"""The report on background jobs that a scheduler writes to Redis for the servers' metrics.

With it, servers need not know how jobs are stored. `tusd-py status` reads the queues itself.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """A queue. waiting, running, failed: number of jobs; oldest: seconds that the first one has been waiting."""

    name: str
    waiting: int
    running: int
    failed: int
    oldest: float | None


@dataclass(frozen=True, slots=True)
class JobsReport:
    """A report. at: its time; workers, busy: number of processes; schedule: next run of each job. Times since the epoch."""

    at: float
    queues: list[QueueStatus] = field(default_factory=list)
    workers: int = 0
    busy: int = 0
    schedule: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Serialize for Redis."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> JobsReport:
        """Parse the output of `to_json`. Raises ValueError, TypeError for anything else."""
        document = json.loads(text)
        queues = [QueueStatus(**queue) for queue in document.pop("queues")]
        return cls(queues=queues, **document)
