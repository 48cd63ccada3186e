"""Numbers that one process counts from its start on: requests, bytes, uploads, locks, hooks.

Plain attributes and dictionaries, so that counting costs nearly nothing. Prometheus reads them when it scrapes
(`prometheus.py`); applications that mount the server without metrics need not. For the event loop's thread.
"""

from __future__ import annotations

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


@dataclass(slots=True)
class Counters:
    """What one process has counted since its start.

    uploads_active: requests that receive a body now. connections_open: connections of clients now. bytes_received: by outcome
    of the body. request_durations: in seconds, by method. errors: refused or failed requests by status and code. lock_waits: in
    seconds. hook_calls, hook_errors: by event type; a refusal is no error. bodies: by way, "direct" or "stream". duplicates:
    look-ups by outcome. protocols: requests by protocol, see `endpoint.py`. redis_failures: failed commands.
    object_store: None where uploads are files.
    """

    uploads_created: int = 0
    uploads_finished: int = 0
    uploads_terminated: int = 0
    uploads_expired: int = 0
    uploads_active: int = 0
    connections_open: int = 0
    bytes_received: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    request_durations: dict[str, Histogram] = field(default_factory=_request_durations)
    errors: dict[tuple[int, str], int] = field(default_factory=dict)
    lock_waits: Histogram = field(default_factory=lambda: Histogram(_LOCK_SECONDS))
    lock_timeouts: int = 0
    hook_calls: dict[str, int] = field(default_factory=dict)
    hook_errors: dict[str, int] = field(default_factory=dict)
    bodies: dict[str, int] = field(default_factory=lambda: {"direct": 0, "stream": 0})
    duplicates: dict[str, int] = field(default_factory=dict)
    protocols: dict[str, int] = field(default_factory=dict)
    redis_failures: int = 0
    object_store: ObjectStoreCounters | None = None

    def request(self, method: str, seconds: float) -> None:
        """Count a request that was answered `seconds` after its head had come in."""
        durations = self.request_durations
        (durations.get(method) or durations[OTHER_METHOD]).observe(seconds)

    def requests(self) -> int:
        """Number of requests answered so far."""
        return sum(seen.count for seen in self.request_durations.values())

    def protocol(self, name: str) -> None:
        """Count a request by the protocol that it speaks, one of a few names."""
        self.protocols[name] = self.protocols.get(name, 0) + 1

    def error(self, status: int, code: str) -> None:
        """Count a request that was refused or failed; `code` is one of the server's own `ERR_…`."""
        key = (status, code)
        self.errors[key] = self.errors.get(key, 0) + 1

    def received(self, count: int, outcome: str) -> None:
        """Count `count` bytes of a body that ended with `outcome`, one of `OUTCOMES`."""
        self.bytes_received[outcome] = self.bytes_received.get(outcome, 0) + count

    def hook(self, event_type: str) -> None:
        """Count a call of a hook."""
        self.hook_calls[event_type] = self.hook_calls.get(event_type, 0) + 1

    def hook_error(self, event_type: str) -> None:
        """Count a hook that failed."""
        self.hook_errors[event_type] = self.hook_errors.get(event_type, 0) + 1

    def body(self, way: str) -> None:
        """Count a body that came in straight from the socket ("direct") or through the HTTP parser ("stream")."""
        self.bodies[way] = self.bodies.get(way, 0) + 1

    def duplicate(self, outcome: str) -> None:
        """Count a creation whose fingerprint was looked up."""
        self.duplicates[outcome] = self.duplicates.get(outcome, 0) + 1

    def redis_failure(self) -> None:
        """Count a command to Redis that failed."""
        self.redis_failures += 1
