"""What is passed over because it cannot be read: logged once each, and counted for the metrics.

One such thing must not keep a sweep, a listing or a delivery from all the others. Not for: what is decided about it.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable

from tusd_py import logs

logger = logging.getLogger(__name__)

Skip = Callable[[str, Exception], None]
"""Called with the path of each thing that is passed over, relative to the store, and what was wrong with it."""

counts: Counter[str] = Counter()
"""How often this process passed something over, by kind; for the metrics."""

_MOST_REMEMBERED = 1000
_logged: set[tuple[str, str]] = set()


def skip(kind: str, path: str, problem: Exception) -> None:
    """Count a thing of this kind (entry, upload, event) and log it, unless this process has done so before."""
    counts[kind] += 1
    key = kind, path
    if key in _logged or len(_logged) >= _MOST_REMEMBERED:
        return
    _logged.add(key)
    logs.event(
        logger,
        logging.WARNING,
        "passed over",
        message=f"The {kind} {printable(path)} cannot be read and is passed over: {problem}",
        kind=kind,
        path=printable(path),
        reason=str(problem),
    )


def skip_entry(path: str, problem: Exception) -> None:
    """Pass over a directory or a name in one, where nobody asks to be told."""
    skip("entry", path, problem)


def printable(path: str) -> str:
    """A path of any bytes as text that can be encoded."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
