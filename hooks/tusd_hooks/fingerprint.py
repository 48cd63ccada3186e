"""Computes the fingerprints of an upload, which are equal for duplicates.

One is the SHA-256 of a canonical form of the identifying metadata, the length and the owner. Where the operator says which
metadata identify a file, another one leaves out the length: by it uploads are found whose length is not known yet. Pure
functions of plain values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tusd_py.events.model import UploadView
from tusd_py.protocol.metadata import CONTROL_KEYS
from tusd_py.settings.model import Settings

_PAIRS = b"tusd-py upload 1 metadata\0"
_VALUE = b"tusd-py upload 1 fingerprint\0"
_ANY_LENGTH = b"any length\0"
_SHARED_KEYS = frozenset({"filetype"})
"""Keys that many files have in common: by themselves they identify none. A plain upload without a name has nothing else."""
_COUNT_SIZE = 8
"""Size of every number in the canonical form in bytes; big-endian."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What identifies an upload.

    keys: the identifying metadata keys; None means all but the control keys.
    fingerprint_key: if not empty, only the value of this key identifies, whatever `keys` is.
    per_owner: whether the owner is part of the fingerprint.
    """

    keys: frozenset[str] | None = None
    fingerprint_key: str = ""
    per_owner: bool = True

    @classmethod
    def of(cls, settings: Settings) -> Identity:
        """What the settings say."""
        return cls(
            keys=frozenset(settings.duplicate_keys) or None,
            fingerprint_key=settings.duplicate_fingerprint_key,
            per_owner=settings.duplicate_scope == "owner",
        )

    def of_upload(self, upload: UploadView) -> str | None:
        """Return 64 hexadecimal digits, or None for uploads that are not checked: parts, no length, no identifying metadata."""
        return None if upload.length is None else self._fingerprint(upload, upload.length)

    def of_any_length(self, upload: UploadView) -> str | None:
        """Return the fingerprint without the length, or None for uploads that are not checked.

        There is none unless the operator chose what identifies: all metadata of two files are too easily the same.
        """
        if self.keys is None and not self.fingerprint_key:
            return None
        return self._fingerprint(upload, None)

    def _fingerprint(self, upload: UploadView, length: int | None) -> str | None:
        if upload.is_partial:
            return None
        owner = upload.owner if self.per_owner else None
        if self.fingerprint_key:
            value = upload.metadata.get(self.fingerprint_key)
            if not value:
                return None
            form = canonical_value(value, length=length, owner=owner)
        else:
            pairs = {key: value for key, value in upload.metadata.items() if self._counts(key)}
            # Keys that the operator chose identify, whatever they are.
            if not pairs.keys() - (_SHARED_KEYS if self.keys is None else frozenset()):
                return None
            form = canonical_pairs(pairs, length=length, owner=owner)
        return hashlib.sha256(form).hexdigest()

    @property
    def compared(self) -> str:
        """What else than the length is equal for duplicates, in words for clients; the owner is not mentioned."""
        return self.fingerprint_key or ", ".join(sorted(self.keys or ())) or "metadata"

    def _counts(self, key: str) -> bool:
        return key not in CONTROL_KEYS and (self.keys is None or key in self.keys)


def canonical_pairs(pairs: Mapping[str, bytes], *, length: int | None, owner: str | None) -> bytes:
    """Encode metadata, length (bytes; None to omit it) and owner (None to omit it).

    The result does not depend on the order of the pairs. As each piece is preceded by its length, different inputs never have
    the same result.
    """
    encoded = sorted((_encode(key), value) for key, value in pairs.items())
    pieces = (piece for pair in encoded for piece in pair)
    return _join(_PAIRS, pieces, length=length, owner=owner)


def canonical_value(value: bytes, *, length: int | None, owner: str | None) -> bytes:
    """Encode a fingerprint that the client computed; never equal to a result of `canonical_pairs`."""
    return _join(_VALUE, [value], length=length, owner=owner)


def _join(kind: bytes, pieces: Iterable[bytes], *, length: int | None, owner: str | None) -> bytes:
    owner_part = b"" if owner is None else b"=" + _encode(owner)
    form = (
        [kind, length.to_bytes(_COUNT_SIZE, "big")] if length is not None else [_ANY_LENGTH, kind]
    )
    for piece in (owner_part, *pieces):
        form += (len(piece).to_bytes(_COUNT_SIZE, "big"), piece)
    return b"".join(form)


def _encode(text: str) -> bytes:
    # Also encodes lone surrogates, which the JSON of a token can contain.
    return text.encode("utf-8", "surrogatepass")
