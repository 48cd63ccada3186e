"""Marks of when uploads are due, so that a sweep need not read all of them."""

from __future__ import annotations

from typing import Protocol


class DueMarks(Protocol):
    """Who remembers when uploads are due, so that the sweep need not look at all of them."""

    def mark(self, upload_id: str, due: float | None, /) -> None:
        """An upload is due at that time (seconds since the epoch) unless bytes come; None: never, or it is gone."""


class NoDueMarks:
    """Remembers nothing; the sweep then looks at every upload."""

    def mark(self, _upload_id: str, _due: float | None, /) -> None: ...
