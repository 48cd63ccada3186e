"""Calls of parsers that may refuse, for properties about both outcomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tusd_py.protocol.errors import ProtocolError

P = ParamSpec("P")
T = TypeVar("T")


def attempt(parse: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | ProtocolError:
    """The result of ``parse``, or the refusal that it raises. Any other exception fails the test."""
    try:
        return parse(*args, **kwargs)
    except ProtocolError as refusal:
        return refusal
