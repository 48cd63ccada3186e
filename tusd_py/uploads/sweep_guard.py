"""Whether a sweep may remove what it finds due, or waits since something is wrong, for instance the clock.

A sweep that would remove 20 uploads and more than half of all, or whose clock is far from the last sweep's, removes nothing
and says so. It goes on after a day in which nobody objected, unless both hold: then only the operator has it go on. Not for:
finding out what is due.
"""

from __future__ import annotations

from tusd_py.storage.sweep_marks import SweepMarks

_FEW_UPLOADS = 20
_AHEAD_SECONDS = 2 * 86_400.0
"""Later than that after the last sweep the clock may be wrong, or no server has run."""
_BEHIND_SECONDS = 3_600.0
_GRACE_SECONDS = 86_400.0
_LONGEST_GRACE_SECONDS = 3 * 86_400.0
"""Longer ago a hold was not begun by this clock."""


def hold_reason(marks: SweepMarks, *, seen: int, due: int, now: float) -> str | None:
    """Why a sweep that would remove `due` of `seen` uploads is to wait; None if it may go on. now: by its clock."""
    last = marks.last()
    reasons = []
    if is_most(seen, due):
        reasons.append(f"it would remove {due} of {seen} uploads")
    if is_far(last, now):
        reasons.append(
            f"the clock is {(now - (last or now)) / 86_400:+.1f} days from the last sweep's"
        )
    if not due or not reasons:
        return None
    since = marks.held_since()
    if since is None or not 0 <= now - since <= _LONGEST_GRACE_SECONDS:
        marks.record_hold(now)
    elif len(reasons) == 1 and now - since >= _GRACE_SECONDS:
        return None
    return " and ".join(reasons)


def is_most(seen: int, due: int) -> bool:
    """Whether `due` uploads are most of those that were seen."""
    return due >= _FEW_UPLOADS and 2 * due > seen


def is_far(last: float | None, now: float) -> bool:
    """Whether the clock is far from that of the last sweep, if one is known."""
    return last is not None and not -_BEHIND_SECONDS <= now - last <= _AHEAD_SECONDS
