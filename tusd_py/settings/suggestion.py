"""Suggestions for mistyped names. By itself, as it must be quick to import."""

from __future__ import annotations

from collections.abc import Iterable


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" if one of the known words is close, else ""."""
    import difflib  # noqa: PLC0415 - only needed for mistakes

    close = difflib.get_close_matches(wrong, sorted(known), n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


def one_of(words: Iterable[str]) -> str:
    """List words as alternatives: "a, b or c"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
