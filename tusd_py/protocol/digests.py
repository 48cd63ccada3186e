"""Digest fields (RFC 9530): of the body of a request (`Content-Digest`), and of a whole upload (`Repr-Digest`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import http_sf

from tusd_py.protocol import errors
from tusd_py.protocol.checksum import ALGORITHMS, Checksum

CONTENT = "Content-Digest"
REPRESENTATION = "Repr-Digest"

_ALGORITHMS: Mapping[str, str] = {"sha-256": "sha256", "sha-512": "sha512"}
"""Name in a digest field -> key of `checksum.ALGORITHMS`, in the order of our preference."""
_NAMES = {algorithm: name for name, algorithm in _ALGORITHMS.items()}
_LONGEST = 2048
"""Characters of a field; one sha-512 has 100. Longer ones take too much time to parse."""


def parse(value: str, name: str) -> Checksum | None:
    """The digest that a field announces, of the first algorithm of ours that it has; None if it has none of them.

    name: of the field, for the error. Raises a 400 for a field that is no dictionary of digests, or longer than 2 KiB.
    """
    return next(each_of(value, name), None)


def each_of(value: str, name: str) -> Iterator[Checksum]:
    """The digests of all algorithms of ours that a field has, in the order of our preference. See `parse`."""
    members = _dictionary(value)
    if members is None:
        raise errors.invalid_digest(name)
    for key, algorithm in _ALGORITHMS.items():
        if key in members:
            digest = members[key]
            if not isinstance(digest, bytes) or len(digest) != ALGORITHMS[algorithm][1]:
                raise errors.invalid_digest(name)
            yield Checksum(algorithm, digest)


def wanted(value: str) -> str | None:
    """The algorithm (a key of `checksum.ALGORITHMS`) that `Want-Repr-Digest` prefers among ours; None without one.

    A field that is no dictionary, or longer than 2 KiB, is ignored.
    """
    members = _dictionary(value) or {}
    weights = {
        algorithm: weight
        for key, algorithm in _ALGORITHMS.items()
        if isinstance(weight := members.get(key), int) and 0 < weight <= 10
    }
    return max(weights, key=weights.__getitem__, default=None)


def serialize(*checksums: Checksum) -> str:
    """A digest field with these digests of sha256 and sha512."""
    return http_sf.ser({_NAMES[each.algorithm]: (each.digest, {}) for each in checksums})


def _dictionary(value: str) -> dict[str, object] | None:
    """The values of a Dictionary (RFC 9651, section 4.2.2), without parameters; None if it is none, or too long."""
    if len(value) > _LONGEST:
        return None
    try:
        found = http_sf.parse(value.encode("latin-1"), tltype="dictionary")
    except (http_sf.StructuredFieldError, UnicodeEncodeError):
        return None
    if not isinstance(found, dict):
        return None
    return {key: each[0] if isinstance(each, tuple) else each for key, each in found.items()}
