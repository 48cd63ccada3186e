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

_is_key = re.compile(r"[^\x00-\x20,\x7f-\x9f\u2028\u2029\ud800-\udfff]+").fullmatch
"""Matches what may be a key: no controls, blanks, commas or line ends."""


def parse(value: str) -> dict[str, bytes]:
    """The pairs of an `Upload-Metadata` field, in their order; an empty field has none.

    value: Latin-1, byte by byte as header fields are handed over. A key may stand without a value, with or without the space
    that would precede it. Keys are non-empty, without comma, space and control characters, and each stands once; beyond ASCII
    they are UTF-8, or else Latin-1. Values are standard Base64 with padding.

    Raises a 400 that names what is wrong, without repeating it.
    """
    pairs: dict[str, bytes] = {}
    if not value:
        return pairs
    for position, element in enumerate(value.split(","), start=1):
        key, separator, encoded = element.strip(" \t").partition(" ")
        if not key:
            raise errors.invalid_metadata(f"pair {position} has no key")
        if not key.isascii():
            key = _from_bytes(key)
        if _is_key(key) is None:
            raise errors.invalid_metadata(
                f"the key of pair {position} contains a control character"
            )
        if key in pairs:
            raise errors.invalid_metadata(f"the key of pair {position} was given before")
        pairs[key] = _decode(encoded, position) if separator else b""
    return pairs


def _from_bytes(key: str) -> str:
    try:
        return key.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        # A client of before UTF-8.
        return key
    except UnicodeEncodeError:
        # Not from a header field.
        return ""


def _decode(encoded: str, position: int) -> bytes:
    try:
        return base64.b64decode(encoded.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise errors.invalid_metadata(f"the value of pair {position} is not valid Base64") from None


def serialize(pairs: Mapping[str, bytes]) -> str:
    """An `Upload-Metadata` field for `pairs`, for uploads whose client sent none (taken over, or changed by a hook).

    Keys that cannot stand in the field (with spaces, commas, control characters) are left out; others are written in UTF-8, as
    `parse` reads them.
    """
    return ",".join(
        f"{name} {base64.b64encode(value).decode('ascii')}" if value else name
        for name, value in (
            (key.encode("utf-8").decode("latin-1"), value)
            for key, value in pairs.items()
            if _is_key(key) is not None
        )
    )
