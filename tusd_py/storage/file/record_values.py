"""Values of a record held against what they may be, so that nobody who works with an upload meets a text for a number."""

from __future__ import annotations

import math

from tusd_py.storage.base import UploadInfo

_LAST_SECOND = 1e11
"""Seconds since the epoch beyond which no time lies, nor as many before it: calendars end there."""
_LONGEST_SECONDS = 1e15
"""The longest time for which an upload may be kept."""
_MOST_BYTES = 2**63 - 1


def check_values(info: UploadInfo) -> None:
    """Raise ValueError with the name of the first value of `info` that cannot be."""
    _check("Size", info.length is None or _is_count(info.length), info.length)
    _check("MaxSize", info.max_size is None or _is_count(info.max_size), info.max_size)
    _check("CreatedAt", _is_number(info.created_at, -_LAST_SECOND, _LAST_SECOND), info.created_at)
    for name, value, most in (
        ("FinishedAt", info.finished_at, _LAST_SECOND),
        ("ExpireAfter", info.expire_after, _LONGEST_SECONDS),
        ("Retain", info.retain, _LONGEST_SECONDS),
    ):
        _check(name, value is None or _is_number(value, 0, most), value)
    for name, text in (
        ("Owner", info.owner),
        ("Metadata", info.metadata_header),
        ("Concat", info.concat_header),
    ):
        _check(name, isinstance(text, str), text)


def _check(name: str, is_right: bool, value: object) -> None:
    if not is_right:
        raise ValueError(f"{name} is {value!r:.100}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_BYTES


def _is_number(value: object, least: float, most: float) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and least <= value <= most
    )
