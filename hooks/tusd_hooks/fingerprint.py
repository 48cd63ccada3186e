"""What two uploads have in common if they are the same thing: the fingerprint of an upload.

It is the SHA-256 of a canonical form of the metadata that counts, the length and the owner. Pure functions of plain values;
who holds a fingerprint, and what is said to whoever comes second, is not decided here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tusd_py.protocol.metadata import CONTROL_KEYS

_PAIRS = b"tusd-py upload 1 metadata\0"
_VALUE = b"tusd-py upload 1 fingerprint\0"
_COUNT_SIZE = 8
"""Bytes of every number in the canonical form; big-endian."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What counts as the same upload.

    keys: the metadata that counts; None is all but the control keys. fingerprint_key: if not empty, the value of this key is
    all that counts, whatever `keys` says. per_owner: whether two owners may each have their own.
    """

    keys: frozenset[str] | None = None
    fingerprint_key: str = ""
    per_owner: bool = True

    def fingerprint(
        self, metadata: Mapping[str, bytes], *, length: int | None, owner: str
    ) -> str | None:
        """64 hexadecimal digits; None for an upload that nothing can be said about: its length (bytes) is not known yet, or
        it has no metadata that counts."""
        if length is None:
            return None
        whose = owner if self.per_owner else None
        if self.fingerprint_key:
            value = metadata.get(self.fingerprint_key)
            if not value:
                return None
            form = canonical_value(value, length=length, owner=whose)
        else:
            pairs = {key: value for key, value in metadata.items() if self._counts(key)}
            if not pairs:
                return None
            form = canonical_pairs(pairs, length=length, owner=whose)
        return hashlib.sha256(form).hexdigest()

    def _counts(self, key: str) -> bool:
        return key not in CONTROL_KEYS and (self.keys is None or key in self.keys)


def canonical_pairs(pairs: Mapping[str, bytes], *, length: int, owner: str | None) -> bytes:
    """Metadata, length (bytes) and owner (None: not part of it) as bytes: the same for every order of the pairs, and never the
    same for different ones, because each piece is preceded by its own length."""
    encoded = sorted((_encode(key), value) for key, value in pairs.items())
    pieces = (piece for pair in encoded for piece in pair)
    return _join(_PAIRS, pieces, length=length, owner=owner)


def canonical_value(value: bytes, *, length: int, owner: str | None) -> bytes:
    """The same for uploads whose client made the fingerprint; never equal to a form of `canonical_pairs`."""
    return _join(_VALUE, [value], length=length, owner=owner)


def _join(kind: bytes, pieces: Iterable[bytes], *, length: int, owner: str | None) -> bytes:
    whose = b"" if owner is None else b"=" + _encode(owner)
    form = [kind, length.to_bytes(_COUNT_SIZE, "big")]
    for piece in (whose, *pieces):
        form += (len(piece).to_bytes(_COUNT_SIZE, "big"), piece)
    return b"".join(form)


def _encode(text: str) -> bytes:
    # Every string has bytes of its own, also one with half a surrogate pair, which a token's JSON can smuggle in.
    return text.encode("utf-8", "surrogatepass")
