"""Conversions between text such as "10MB", "1GiB", "7d", "1h30m" and numbers of bytes or seconds."""

from __future__ import annotations

import re
from decimal import Decimal

MAX_SIZE = 2**63 - 1
"""The largest size in bytes that a file offset can hold."""

MAX_DURATION = 36_500 * 86_400.0
"""A hundred years in seconds. A larger number is a mistake and would overflow timers."""

SIZE_HELP = "give bytes, or a number with kB, MB, GB, TB (1000s) or KiB, MiB, GiB, TiB (1024s)"
DURATION_HELP = 'give seconds, or a number with ms, s, m, h or d, such as "500ms", "20m", "1h30m"'

_DECIMAL = {"TB": 1000**4, "GB": 1000**3, "MB": 1000**2, "kB": 1000}
_BINARY = {"TiB": 1024**4, "GiB": 1024**3, "MiB": 1024**2, "KiB": 1024}
_FACTORS = {unit.lower(): factor for unit, factor in {**_DECIMAL, **_BINARY, "B": 1, "": 1}.items()}
# A letter alone counts in thousands, as the prefix does everywhere but in memory chips.
_FACTORS.update({unit[0].lower(): factor for unit, factor in _DECIMAL.items()})

_SECONDS = {"d": Decimal(86_400), "h": Decimal(3600), "m": Decimal(60), "s": Decimal(1)}
_SECONDS["ms"] = Decimal("0.001")

_SIZE = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?) ?([A-Za-z]{0,3})")
_PLAIN_NUMBER = re.compile(r"[0-9]{1,30}(?:\.[0-9]{1,30})?")
_STEP = re.compile(r" ?([0-9]{1,30}(?:\.[0-9]{1,30})?) ?(ms|s|m|h|d)")


def parse_size(text: str) -> int:
    """Parse a size such as "1GiB", "10 MB", "512k" or "1048576" into bytes, rounded down. Raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    factor = _FACTORS.get(found[2].lower()) if found else None
    if found is None or factor is None:
        raise ValueError(SIZE_HELP)
    size = int(Decimal(found[1]) * factor)
    if size > MAX_SIZE:
        raise ValueError(f"too large; the most is {MAX_SIZE} bytes")
    return size


def format_size(size: int) -> str:
    """Format bytes as the shortest text that `parse_size` converts back exactly."""
    candidates = [
        f"{size // factor}{unit}"
        for unit, factor in {**_BINARY, **_DECIMAL}.items()
        if size >= factor and size % factor == 0
    ]
    return min(candidates, key=len, default=str(size)) if size >= 1000 else str(size)


def parse_duration(text: str) -> float:
    """Parse a duration such as "7d", "500ms", "1h30m" or "60" into seconds. Raises ValueError."""
    text = text.strip()
    seconds = Decimal(text) if _PLAIN_NUMBER.fullmatch(text) else _sum_of_steps(text)
    if seconds > MAX_DURATION:
        raise ValueError(f"too long; the most is {format_duration(MAX_DURATION)}")
    return float(seconds)


def _sum_of_steps(text: str) -> Decimal:
    seconds, position = Decimal(0), 0
    while position < len(text):
        step = _STEP.match(text, position)
        if step is None:
            raise ValueError(DURATION_HELP)
        seconds += Decimal(step[1]) * _SECONDS[step[2]]
        position = step.end()
    if position == 0:
        raise ValueError(DURATION_HELP)
    return seconds


def format_duration(seconds: float) -> str:
    """Format seconds in the largest unit that divides them; `parse_duration` converts the text back exactly."""
    if seconds == 0:
        return "0"
    exact = Decimal(repr(float(seconds)))
    for unit, factor in _SECONDS.items():
        if exact % factor == 0:
            return f"{int(exact / factor)}{unit}"
    return f"{exact:f}s"
