"""Who is told what happens to uploads; the metrics do this, and whoever mounts the server without them need not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Observer(Protocol):
    """Who is told what happens, for metrics."""

    uploads_created: int
    uploads_finished: int
    uploads_terminated: int
    uploads_expired: int
    uploads_active: int

    def received(self, count: int, outcome: str, /) -> None: ...

    def lock_wait(self, seconds: float, /) -> None: ...

    def lock_timeout(self) -> None: ...


@dataclass(slots=True)
class CountingObserver:
    """An observer that only counts; for those who mount the server without metrics."""

    uploads_created: int = 0
    uploads_finished: int = 0
    uploads_terminated: int = 0
    uploads_expired: int = 0
    uploads_active: int = 0

    def received(self, count: int, outcome: str, /) -> None: ...

    def lock_wait(self, seconds: float, /) -> None: ...

    def lock_timeout(self) -> None: ...
