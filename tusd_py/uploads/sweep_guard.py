"""Hold a sweep that would remove suspiciously much, as when the clock is wrong.

A sweep is held if it would remove at least 20 uploads and more than half of all, or if its clock is far from that of the last
sweep: it removes nothing, but finishes what a crash interrupted. After a day it runs all the same, unless both conditions hold:
then only the operator can force it. Not for: finding out what is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tusd_py.storage.base import SweepTimes

_FEW_UPLOADS = 20
LONGEST_PAUSE_SECONDS = 2 * 86_400.0
"""Time since the last sweep from which on the clock may be wrong, or no server has run; sweeps are much more frequent."""
_BEHIND_SECONDS = 3_600.0
_GRACE_SECONDS = 86_400.0


Clock = Callable[[], float]
"""Returns seconds since the epoch."""


def steady(clock: Clock) -> Clock:
    """A clock for one sweep: `clock`, unless that is set ahead later.

    Whether a sweep is held is decided at its beginning; no time that was not looked at then may decide what is due.
    """
    ahead = clock() - time.monotonic()
    return lambda: min(clock(), ahead + time.monotonic())


def hold_reason(
    times: SweepTimes,
    *,
    seen: int,
    due: int,
    now: float,
    longest_pause: float = LONGEST_PAUSE_SECONDS,
) -> str | None:
    """The reason to hold a sweep that would remove `due` of `seen` uploads; None to let it run.

    now: by its clock. longest_pause: the longest time between two sweeps, in seconds.
    """
    last = times.ended_at
    reasons = []
    if is_most(seen, due):
        reasons.append(f"it would remove {due} of {seen} uploads")
    if is_far(last, now, longest_pause):
        reasons.append(
            f"the clock is {(now - (last or now)) / 86_400:+.1f} days from the last sweep's"
        )
    if not due or not reasons:
        return None
    since = times.held_since
    is_begun = not begins_hold(times, now, longest_pause)
    if len(reasons) == 1 and is_begun and since is not None and now - since >= _GRACE_SECONDS:
        return None
    return " and ".join(reasons)


def begins_hold(
    times: SweepTimes, now: float, longest_pause: float = LONGEST_PAUSE_SECONDS
) -> bool:
    """Whether a sweep that is held now is the first one, so that this is to be recorded.

    A hold that was recorded in the future, or longer ago than sweeps are apart, was recorded by a wrong clock.
    """
    since = times.held_since
    return since is None or not 0 <= now - since <= _GRACE_SECONDS + longest_pause


def is_most(seen: int, due: int) -> bool:
    """Whether `due` is suspiciously much of `seen`."""
    return due >= _FEW_UPLOADS and 2 * due > seen


def is_far(last: float | None, now: float, longest_pause: float = LONGEST_PAUSE_SECONDS) -> bool:
    """Whether the clock is far from that of the last sweep, if one is known."""
    return last is not None and not -_BEHIND_SECONDS <= now - last <= longest_pause
