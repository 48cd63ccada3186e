"""Parse and serialize `Upload-Metadata` (tus 1.0.0, "Creation")."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from tusd_py.protocol import errors

FORCE_KEY = "force_upload"

CONTROL_KEYS = frozenset({FORCE_KEY, "token", "access_token", "upload_token"})
"""Keys of metadata that control the server and do not describe the upload."""

_is_key = re.compile(r"[^\x00-\x20,\x7f-\x9f\u2028\u2029\ud800-\udfff]+").fullmatch
"""Match a key: no control characters, blanks, commas or line ends."""


MAX_KEYS = 256
_LONGEST_TEXT = 2048
"""Bytes of a value that are looked at for a name."""


def parse(value: str, *, strict: bool = True) -> dict[str, bytes]:
    """Parse an `Upload-Metadata` field into its pairs, in order; an empty field has none.

    Keys are non-empty, unique, and without commas, spaces and control characters; beyond ASCII they are UTF-8, or else Latin-1.
    A key may come without a value, with or without a space behind it. Values are standard Base64 with padding. At most
    `MAX_KEYS` of them, as each request for the upload may parse them again.

    Args:
        value: The field, decoded as Latin-1.
        strict: False for a field that was accepted before, by a version whose Base64 decoder overlooked surplus padding,
            and that did not count keys.

    Raises:
        ProtocolError: 400 that names the position and the fault, without repeating the value.
    """
    pairs: dict[str, bytes] = {}
    if not value:
        return pairs
    if strict and value.count(",") >= MAX_KEYS:
        raise errors.invalid_metadata(f"it has more than {MAX_KEYS} keys")
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
        pairs[key] = _decode(encoded, position, strict) if separator else b""
    return pairs


def _from_bytes(key: str) -> str:
    try:
        return key.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        # From a client that writes Latin-1.
        return key
    except UnicodeEncodeError:
        # Not from a header field.
        return ""


def _decode(encoded: str, position: int, strict: bool) -> bytes:
    try:
        if strict and len(encoded) % 4:
            raise binascii.Error("not a multiple of four characters")
        return base64.b64decode(encoded.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise errors.invalid_metadata(f"the value of pair {position} is not valid Base64") from None


def text_of(value: bytes) -> str:
    """A value as text for a name. Of one that is longer than any name only the beginning and the end are kept.

    The end of a file name tells its type, and a client may send 47 kB of it.
    """
    if len(value) <= _LONGEST_TEXT:
        return value.decode("utf-8", "replace")
    half = _LONGEST_TEXT // 2
    return "".join(piece.decode("utf-8", "ignore") for piece in (value[:half], value[-half:]))


def serialize(pairs: Mapping[str, bytes]) -> str:
    """Serialize pairs to an `Upload-Metadata` field, for uploads that were adopted or whose metadata a hook changed.

    Leaves out keys that the field cannot contain (spaces, commas, control characters); writes others in UTF-8, as `parse`
    reads them.
    """
    return ",".join(
        [
            f"{_in_latin_1(key)} {binascii.b2a_base64(value, newline=False).decode('ascii')}"
            if value
            else _in_latin_1(key)
            for key, value in pairs.items()
            if _is_key(key) is not None
        ]
    )


def _in_latin_1(key: str) -> str:
    return key if key.isascii() else key.encode("utf-8").decode("latin-1")
