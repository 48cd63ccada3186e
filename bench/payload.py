"""The bytes that are uploaded: random, in memory, the same for every server."""

from __future__ import annotations

import base64
import hashlib
import os

PAYLOAD_SIZE = 16 * 1024 * 1024
"""Bytes. Longer bodies repeat it. Larger than a processor's second cache, as what comes from a network is in none."""


def make() -> int:
    """The descriptor of a file in memory with the payload."""
    descriptor = os.memfd_create("payload")
    os.write(descriptor, os.urandom(PAYLOAD_SIZE))
    return descriptor


def sha256(descriptor: int, size: int) -> bytes:
    """The SHA-256, as `Upload-Checksum` wants it, of a body of `size` bytes."""
    payload = os.pread(descriptor, PAYLOAD_SIZE, 0)
    digest = hashlib.sha256()
    for _ in range(size // PAYLOAD_SIZE):
        digest.update(payload)
    digest.update(payload[: size % PAYLOAD_SIZE])
    return base64.b64encode(digest.digest())
