"""What one process counts of its requests to an object store, and of the bytes that wait for it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

from tusd_py.telemetry.histogram import Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ObjectStoreCounters:
    """See `RequestObserver`. Operations have the names of S3, `PutObject` for instance.

    Attributes:
        requests: Attempts that ended, by operation and outcome.
        repeats: Attempts that followed one that failed, by operation.
        durations: Seconds up to the head of the response, by operation.
        in_flight: Attempts that wait for their response now, by operation.
        spool_bytes: Returns how many bytes of uploads are in memory.
        spool_limit: Most of them.
    """

    def __init__(self, spool_bytes: Callable[[], int], spool_limit: int) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.repeats: Counter[str] = Counter()
        self.durations = defaultdict[str, Histogram](lambda: Histogram(_SECONDS))
        self.in_flight: Counter[str] = Counter()
        self.spool_bytes = spool_bytes
        self.spool_limit = spool_limit

    def began(self, operation: str) -> None:
        """Count an attempt that is being made."""
        self.in_flight[operation] += 1

    def ended(self, operation: str, outcome: str, seconds: float) -> None:
        """Count the end of an attempt."""
        self.in_flight[operation] -= 1
        self.requests[operation, outcome] += 1
        self.durations[operation].observe(seconds)

    def repeated(self, operation: str) -> None:
        """Count an attempt that follows one that failed."""
        self.repeats[operation] += 1
