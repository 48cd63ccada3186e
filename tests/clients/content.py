"""Files to upload, and the check that a server stores the same bytes.

The content is the same in every run but repeats nowhere, so that a byte at a wrong place is a wrong
byte. Expected sums are computed while a file is written, never from what came back.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.server import ServerProcess
from tests.support.tus import id_of, path_of

MIB = 1 << 20
_BLOCK = 1 * MIB


@dataclass(frozen=True)
class SourceFile:
    """A file to upload: where it lies, its length in bytes, and the SHA-256 of its bytes (hex)."""

    path: Path
    size: int
    sha256: str

    def stream(self) -> io.BytesIO:
        """The file in memory, for clients that do not close what they open."""
        return io.BytesIO(self.path.read_bytes())


def write_source(path: Path, size: int) -> SourceFile:
    """Writes `size` bytes of non-repeating content to `path`."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in _blocks(size):
            digest.update(block)
            file.write(block)
    return SourceFile(path, size, digest.hexdigest())


def _blocks(size: int) -> Iterator[memoryview]:
    """Each block is a different cut from two blocks of noise, and starts with its own number."""
    noise = random.Random(size).randbytes(2 * _BLOCK)
    for number, start in enumerate(range(0, size, _BLOCK)):
        cut = number * 4099 % _BLOCK
        block = bytearray(noise[cut : cut + _BLOCK])
        block[:8] = number.to_bytes(8, "big")
        yield memoryview(block)[: size - start]


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_download(server: ServerProcess, url: str) -> str:
    """The SHA-256 of what GET hands out for an upload, in hex. Fails unless that is 200."""
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    try:
        connection.request("GET", path_of(url))
        response = connection.getresponse()
        assert response.status == 200, (response.status, response.read())
        digest = hashlib.sha256()
        while block := response.read(_BLOCK):
            digest.update(block)
        return digest.hexdigest()
    finally:
        connection.close()


def assert_stored(server: ServerProcess, url: str, source: SourceFile) -> None:
    """The upload at `url` (whatever its host) is `source`: on disk, and by GET."""
    file = server.data_file(id_of(path_of(url)))
    assert file.stat().st_size == source.size
    assert sha256_of_file(file) == source.sha256
    assert sha256_of_download(server, url) == source.sha256
