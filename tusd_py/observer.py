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


class Timetable(Protocol):
    """Who remembers when uploads are due, so that the sweep need not look at all of them."""

    def note(self, upload_id: str, due: float | None, /) -> None:
        """An upload is due at that time (seconds since the epoch) unless bytes come; None: never, or it is gone."""


class NoTimetable:
    """Remembers nothing; the sweep then looks at every upload."""

    def note(self, _upload_id: str, _due: float | None, /) -> None: ...


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
