"""What a scheduler reports of the jobs beside the server, by way of Redis, to the servers' metrics.

So servers need not know how jobs are kept, and a scrape of metrics asks nobody. Not for: `tusd-py status`, which looks itself.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue. waiting, running, failed: jobs; oldest: seconds for which the first one has been waiting."""

    name: str
    waiting: int
    running: int
    failed: int
    oldest: float | None


@dataclass(frozen=True, slots=True)
class JobsReport:
    """at: when it was made, seconds since the epoch. workers, busy: processes. schedule: when each is due next, likewise."""

    at: float
    queues: list[QueueStatus] = field(default_factory=list)
    workers: int = 0
    busy: int = 0
    schedule: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """For Redis."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> JobsReport:
        """What `to_json` made. Raises ValueError, TypeError for anything else."""
        document = json.loads(text)
        queues = [QueueStatus(**queue) for queue in document.pop("queues")]
        return cls(queues=queues, **document)
