"""Pauses of work in the background that reads the whole storage, so that clients come first."""

from __future__ import annotations

from tusd_py.telemetry.counters import Counters

_PAUSE_FACTOR = 3.0
"""Seconds of pause per second of work while clients are served: a duty cycle of 25 %."""


class DutyCycle:
    """Tells how long to pause."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._served = 0

    def pause_factor(self) -> float:
        """Seconds of pause per second of work: none unless clients were served since the last call, or are now."""
        served, self._served = self._served, self._counters.requests()
        return _PAUSE_FACTOR if served != self._served or self._counters.uploads_active else 0.0
