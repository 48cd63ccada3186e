"""A clock that can be set, for processes that are forked from the one that imports this.

To be imported before everything else, as whoever keeps a reference to `time.time` keeps that of this clock then. The times of
files, the event loop's and those of `datetime` stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.support.control import Page

_page: Page | None = None
_real_time: Callable[[], float] = time.time


def _time() -> float:
    return _real_time() if _page is None else _real_time() + _page.shift


time.time = _time


def follow(page: Page) -> None:
    """Let the clock of this process be ahead by what a page says."""
    global _page  # noqa: PLW0603 - of the process, like its clock
    _page = page


def followed() -> Page | None:
    """The page of this process, if it has one."""
    return _page
