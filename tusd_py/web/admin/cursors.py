"""Cursors of the operators' lists: opaque to clients, and checked as anything that comes from them."""

from __future__ import annotations

import base64
import binascii
import json
import math

from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.redis.upload_list import Position
from tusd_py.storage.base import is_valid_id

_MOST_DIGITS = 20


def of(parts: list[str | float]) -> str:
    """Return the cursor with these parts."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


def unknown() -> ProtocolError:
    """Return the 400 for a cursor that is none of the list."""
    return errors.bad_request("after is not a cursor of this list")


def position(cursor: str | None) -> Position | None:
    """Return the place in a list; None for its beginning. Raises a 400."""
    match _parts(cursor):
        case []:
            return None
        case [str(upload_id), float(when)] if is_valid_id(upload_id) and math.isfinite(when):
            return Position(upload_id, when)
    raise unknown()


def word(cursor: str | None) -> str:
    """Return the last word of a search; empty for its beginning. Raises a 400."""
    match _parts(cursor):
        case []:
            return ""
        case [str(last)]:
            return last
    raise unknown()


def whole_number(text: str, most: int) -> int | None:
    """Return a whole number from 0 to `most`; None for anything else."""
    if not (text.isascii() and text.isdecimal()) or len(text) > _MOST_DIGITS:
        return None
    number = int(text)
    return number if number <= most else None


def _parts(cursor: str | None) -> list[object]:
    if not cursor:
        return []
    try:
        parts = json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        parts = None
    if not isinstance(parts, list):
        raise unknown()
    return parts
