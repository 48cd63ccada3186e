"""Validation of a record's values, so that later code can rely on their types and ranges."""

from __future__ import annotations

import math

from tusd_py.storage.base import LONGEST_SECONDS, UploadInfo

_LAST_SECOND = 1e11
"""Largest distance of a valid time from the epoch, in seconds; calendars end there."""
_MAX_BYTES = 2**63 - 1


def check_values(info: UploadInfo) -> None:
    """Raise ValueError with the name of the first invalid value of `info`."""
    _check("Size", info.length is None or _is_count(info.length), info.length)
    _check("MaxSize", info.max_size is None or _is_count(info.max_size), info.max_size)
    _check("CreatedAt", _is_number(info.created_at, -_LAST_SECOND, _LAST_SECOND), info.created_at)
    for name, value, most in (
        ("FinishedAt", info.finished_at, _LAST_SECOND),
        ("ExpireAfter", info.expire_after, LONGEST_SECONDS),
        ("Retain", info.retain, LONGEST_SECONDS),
    ):
        _check(name, value is None or _is_number(value, 0, most), value)
    for name, text in (
        ("Owner", info.owner),
        ("Metadata", info.metadata_header),
        ("Concat", info.concat_header),
        ("ReprDigest", info.repr_digest),
        ("WantedDigest", info.wanted_digest),
    ):
        _check(name, isinstance(text, str), text)


def _check(name: str, is_right: bool, value: object) -> None:
    if not is_right:
        raise ValueError(f"{name} is {value!r:.100}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_BYTES


def _is_number(value: object, least: float, most: float) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and least <= value <= most
    )
