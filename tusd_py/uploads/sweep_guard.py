"""Hold a sweep that would remove suspiciously much, as when the clock is wrong.

A sweep is held if it would remove at least 20 uploads and more than half of all, or if its clock is far from that of the last
sweep. After a day it runs all the same, unless both conditions hold: then only the operator can force it. Not for: finding out
what is due.
"""

from __future__ import annotations

from tusd_py.storage.base import SweepTimes

_FEW_UPLOADS = 20
_AHEAD_SECONDS = 2 * 86_400.0
"""Time since the last sweep from which on the clock may be wrong, or no server has run."""
_BEHIND_SECONDS = 3_600.0
_GRACE_SECONDS = 86_400.0
_LONGEST_GRACE_SECONDS = 3 * 86_400.0
"""Age from which on a recorded hold was not begun by this clock."""


def hold_reason(times: SweepTimes, *, seen: int, due: int, now: float) -> str | None:
    """The reason to hold a sweep that would remove `due` of `seen` uploads; None to let it run. now: by its clock."""
    last = times.ended_at
    reasons = []
    if is_most(seen, due):
        reasons.append(f"it would remove {due} of {seen} uploads")
    if is_far(last, now):
        reasons.append(
            f"the clock is {(now - (last or now)) / 86_400:+.1f} days from the last sweep's"
        )
    if not due or not reasons:
        return None
    since = times.held_since
    if (
        len(reasons) == 1
        and since is not None
        and _GRACE_SECONDS <= now - since <= _LONGEST_GRACE_SECONDS
    ):
        return None
    return " and ".join(reasons)


def begins_hold(times: SweepTimes, now: float) -> bool:
    """Whether a sweep that is held now is the first one, so that this is to be recorded."""
    since = times.held_since
    return since is None or not 0 <= now - since <= _LONGEST_GRACE_SECONDS


def is_most(seen: int, due: int) -> bool:
    """Whether `due` is suspiciously much of `seen`."""
    return due >= _FEW_UPLOADS and 2 * due > seen


def is_far(last: float | None, now: float) -> bool:
    """Whether the clock is far from that of the last sweep, if one is known."""
    return last is not None and not -_BEHIND_SECONDS <= now - last <= _AHEAD_SECONDS
