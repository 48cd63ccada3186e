"""Numbers that one process counts from its start on: requests, bytes, uploads, locks, hooks.

Plain attributes and dictionaries, so that counting costs nearly nothing. Prometheus reads them when it scrapes
(`prometheus.py`); applications that mount the server without metrics need not. For the event loop's thread.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from tusd_py.telemetry.histogram import Histogram
from tusd_py.telemetry.object_store import ObjectStoreCounters

METHODS = ("POST", "PUT", "HEAD", "PATCH", "OPTIONS", "GET", "DELETE")
OTHER_METHOD = "OTHER"
"""Any other method: counted under one name, as strangers could otherwise create any number of time series."""

OUTCOMES = (
    "complete",
    "disconnected",
    "timed_out",
    "interrupted",
    "shutdown",
    "discarded",
    "failed",
)
"""How the body of a request can end."""

# Requests with large bodies take as long as their clients' links, hence the long tail.
_REQUEST_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600,
)  # fmt: skip
_LOCK_SECONDS = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 20, 60)


def _request_durations() -> dict[str, Histogram]:
    return {method: Histogram(_REQUEST_SECONDS) for method in (*METHODS, OTHER_METHOD)}


def _zeros(*names: str) -> defaultdict[str, int]:
    """Counts by name, from zero on, those of `names` before anything is counted. Faster to add to than `Counter`."""
    return defaultdict(int, dict.fromkeys(names, 0))


@dataclass(slots=True)
class Counters:
    """What one process has counted since its start.

    uploads_active: requests that receive a body now. connections_open: connections of clients now. bytes_received: by outcome
    of the body, one of `OUTCOMES`. request_durations: in seconds, by method. errors: refused or failed requests by status and
    code, one of the server's own `ERR_…`. lock_waits: in seconds. hook_calls, hook_errors: by event type; a refusal is none.
    bodies: by way, "direct" (straight from the socket) or "stream" (through the HTTP parser). duplicates: look-ups of
    fingerprints at creations, by outcome. protocols: requests by protocol, see `endpoint.py`. redis_failures: failed commands.
    object_store: None where uploads are files.
    """

    uploads_created: int = 0
    uploads_finished: int = 0
    uploads_terminated: int = 0
    uploads_expired: int = 0
    uploads_active: int = 0
    connections_open: int = 0
    bytes_received: defaultdict[str, int] = field(default_factory=lambda: _zeros(*OUTCOMES))
    request_durations: dict[str, Histogram] = field(default_factory=_request_durations)
    errors: defaultdict[tuple[int, str], int] = field(default_factory=lambda: defaultdict(int))
    lock_waits: Histogram = field(default_factory=lambda: Histogram(_LOCK_SECONDS))
    lock_timeouts: int = 0
    hook_calls: defaultdict[str, int] = field(default_factory=_zeros)
    hook_errors: defaultdict[str, int] = field(default_factory=_zeros)
    bodies: defaultdict[str, int] = field(default_factory=lambda: _zeros("direct", "stream"))
    duplicates: defaultdict[str, int] = field(default_factory=_zeros)
    protocols: defaultdict[str, int] = field(default_factory=_zeros)
    redis_failures: int = 0
    object_store: ObjectStoreCounters | None = None

    def request(self, method: str, seconds: float) -> None:
        """Count a request that was answered `seconds` after its head had come in."""
        durations = self.request_durations
        (durations.get(method) or durations[OTHER_METHOD]).observe(seconds)

    def requests(self) -> int:
        """Number of requests answered so far."""
        return sum(seen.count for seen in self.request_durations.values())

    def redis_failure(self) -> None:
        """Count a command to Redis that failed."""
        self.redis_failures += 1
