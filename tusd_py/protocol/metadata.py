"""`Upload-Metadata`: parsing it, and writing it where an upload has none of its own making (tus 1.0.0, "Creation")."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from tusd_py.protocol import errors

FORCE_KEY = "force_upload"

CONTROL_KEYS = frozenset({FORCE_KEY, "token", "access_token", "upload_token"})
"""Metadata that tells the server what to do, and says nothing about what is uploaded."""

_is_visible = re.compile(r"[!-~]+").fullmatch


def parse(value: str) -> dict[str, bytes]:
    """The pairs of an `Upload-Metadata` field, in their order; an empty field has none.

    A key may stand without a value, with or without the space that would precede it. Keys are non-empty, visible ASCII
    without comma or space, and each stands once; values are standard Base64 with padding. Raises a 400 that names what is
    wrong, without repeating the value.
    """
    pairs: dict[str, bytes] = {}
    if not value:
        return pairs
    for position, element in enumerate(value.split(","), start=1):
        key, separator, encoded = element.strip(" \t").partition(" ")
        if not key:
            raise errors.invalid_metadata(f"pair {position} has no key")
        if _is_visible(key) is None:
            raise errors.invalid_metadata(f"the key of pair {position} is not visible ASCII")
        if key in pairs:
            raise errors.invalid_metadata(f"the key of pair {position} was given before")
        pairs[key] = _decode(encoded, position) if separator else b""
    return pairs


def _decode(encoded: str, position: int) -> bytes:
    try:
        return base64.b64decode(encoded.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise errors.invalid_metadata(f"the value of pair {position} is not valid Base64") from None


def serialize(pairs: Mapping[str, bytes]) -> str:
    """An `Upload-Metadata` field for `pairs`, for uploads whose client sent none (taken over, or changed by a hook).

    Keys that cannot stand in the field (spaces, commas, beyond ASCII) are left out.
    """
    return ",".join(
        f"{key} {base64.b64encode(value).decode('ascii')}" if value else key
        for key, value in pairs.items()
        if "," not in key and _is_visible(key) is not None
    )
