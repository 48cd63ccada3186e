"""Unreadable entries that are skipped: logged once each, and counted for the metrics.

One of them must not stop a sweep, a listing or a delivery of all the others.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable

from tusd_py import logs

logger = logging.getLogger(__name__)

Skip = Callable[[str, Exception], None]
"""Called with the path of each skipped entry, relative to the store, and the error."""

counts: Counter[str] = Counter()
"""How many entries this process has skipped, by kind; for the metrics."""

_MAX_LOGGED = 1000
_logged: set[tuple[str, str]] = set()


def skip(kind: str, path: str, problem: Exception) -> None:
    """Count a skipped entry of this kind (entry, upload, event); log it if this process has not done so before."""
    counts[kind] += 1
    key = kind, path
    if key in _logged or len(_logged) >= _MAX_LOGGED:
        return
    _logged.add(key)
    logs.event(
        logger,
        logging.WARNING,
        "passed over",
        message=f"The {kind} {printable(path)} cannot be read and is skipped: {problem}",
        kind=kind,
        path=printable(path),
        reason=str(problem),
    )


def skip_entry(path: str, problem: Exception) -> None:
    """Skip a directory or an entry of one; the default `Skip`."""
    skip("entry", path, problem)


def ignore_entry(_path: str, _problem: Exception) -> None:
    """Skip an entry that sweeps report."""


def printable(path: str) -> str:
    """Return a path as text that can be encoded, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
