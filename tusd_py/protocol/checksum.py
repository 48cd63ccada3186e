"""Parse `Upload-Checksum`, and compute checksums with the algorithms on offer (tus 1.0.0, "Checksum")."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from crc32c import crc32c

from tusd_py.protocol import errors


class Hasher(Protocol):
    """A running checksum, in the shape of hashlib's objects."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object: ...

    def digest(self) -> bytes: ...


class _Crc:
    """A CRC; the digest is four bytes, big-endian. update: returns the value after further bytes."""

    def __init__(self, update: Callable[[bytes | bytearray | memoryview, int], int]) -> None:
        self._value = 0
        self._update = update

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._value = self._update(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


ALGORITHMS: dict[str, tuple[Callable[[], Hasher], int]] = {
    "sha1": (lambda: hashlib.sha1(usedforsecurity=False), 20),
    "sha256": (hashlib.sha256, 32),
    "sha512": (hashlib.sha512, 64),
    "md5": (lambda: hashlib.md5(usedforsecurity=False), 16),
    "crc32": (lambda: _Crc(zlib.crc32), 4),
    "crc32c": (lambda: _Crc(crc32c), 4),
}
"""Name in the header -> (factory of hashers, length of the digest in bytes). crc32: ISO-HDLC; crc32c: Castagnoli."""

SUPPORTED = ",".join(ALGORITHMS)
"""The value of `Tus-Checksum-Algorithm`."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """The checksum that a request announces: a key of `ALGORITHMS`, and the expected digest."""

    algorithm: str
    digest: bytes

    def hasher(self) -> Hasher:
        """Start a running checksum of this algorithm."""
        return ALGORITHMS[self.algorithm][0]()

    def matches(self, hasher: Hasher) -> bool:
        """Whether the digest of `hasher` is the announced one."""
        return hmac.compare_digest(self.digest, hasher.digest())


def parse(value: str) -> Checksum:
    """Parse `<algorithm> <base64>`.

    Raises:
        ProtocolError: 400 for an unknown algorithm, invalid Base64 or a digest of the wrong length.
    """
    algorithm, separator, encoded = value.partition(" ")
    if not separator:
        raise errors.invalid_checksum("it must be an algorithm, a space and a Base64 digest")
    if algorithm not in ALGORITHMS:
        raise errors.unsupported_checksum(SUPPORTED)
    try:
        digest = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise errors.invalid_checksum("the digest is not valid Base64") from None
    if len(digest) != ALGORITHMS[algorithm][1]:
        raise errors.invalid_checksum(
            f"a digest of {algorithm} has {ALGORITHMS[algorithm][1]} bytes"
        )
    return Checksum(algorithm, digest)
