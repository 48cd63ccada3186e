"""Record when uploads are due, so that a sweep need not read all of them."""

from __future__ import annotations

from typing import Protocol


class DueMarks(Protocol):
    """Records when uploads are due; `DueIndexWriter` does so in Redis."""

    def mark(self, upload_id: str, due: float | None, /) -> None:
        """Record when an upload is due, in seconds since the epoch; None for never, or because it was removed."""


class NoDueMarks:
    """Records nothing; sweeps check every upload then."""

    def mark(self, _upload_id: str, _due: float | None, /) -> None: ...
