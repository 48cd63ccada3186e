"""The fields of requests in the two protocols: tus 1.0.0, and Resumable Uploads for HTTP in its newest interop version."""

from __future__ import annotations

import base64
import hashlib
import random
from dataclasses import dataclass

from tests.soak.line import Answer
from tests.support.ietf import PARTIAL
from tests.support.tus import OCTETS, checksum, metadata

ALGORITHMS = ("sha1", "sha256", "sha512", "md5", "crc32")


@dataclass(frozen=True)
class Tus:
    """tus 1.0.0."""

    marks = {"Tus-Resumable": "1.0.0"}  # noqa: RUF012 - never changed
    mismatch = 460

    def create(
        self, name: str, length: int | None, *, has_body: bool, complete: bool
    ) -> dict[str, str]:
        """Fields of a creation. length: None defers it. complete: nothing comes after this body."""
        fields = {"Upload-Metadata": metadata(name=name)} if name else {}
        if length is None:
            fields["Upload-Defer-Length"] = "1"
        else:
            fields["Upload-Length"] = str(length)
        if has_body:
            fields["Content-Type"] = OCTETS
        return {**self.marks, **fields}

    def append(self, offset: int, *, complete: bool, length: int | None) -> dict[str, str]:
        """Fields of more bytes. length: to be told with them."""
        told = {} if length is None else {"Upload-Length": str(length)}
        return {**self.marks, "Upload-Offset": str(offset), "Content-Type": OCTETS, **told}

    def checksum(self, data: bytes, dice: random.Random) -> tuple[str, str]:
        return "Upload-Checksum", checksum(data, dice.choice(ALGORITHMS))

    def is_complete(self, head: Answer) -> bool:
        """What the response to a HEAD says."""
        return head.get("Upload-Length") == head.get("Upload-Offset") is not None


@dataclass(frozen=True)
class Ietf:
    """Resumable Uploads for HTTP, interop version 9."""

    marks = {"Upload-Draft-Interop-Version": "9"}  # noqa: RUF012 - never changed
    mismatch = 400

    def create(
        self, name: str, length: int | None, *, has_body: bool, complete: bool
    ) -> dict[str, str]:
        fields = {"Upload-Complete": "?1" if complete else "?0"}
        if name:
            fields["Content-Disposition"] = f'attachment; filename="{name}"'
        if length is not None:
            fields["Upload-Length"] = str(length)
        return {**self.marks, **fields}

    def append(self, offset: int, *, complete: bool, length: int | None) -> dict[str, str]:
        fields = {"Upload-Offset": str(offset), "Upload-Complete": "?1" if complete else "?0"}
        return {**self.marks, **fields, "Content-Type": PARTIAL}

    def checksum(self, data: bytes, dice: random.Random) -> tuple[str, str]:
        algorithm = dice.choice(("sha-256", "sha-512"))
        digest = hashlib.new(algorithm.replace("-", ""), data).digest()
        return "Content-Digest", f"{algorithm}=:{base64.b64encode(digest).decode()}:"

    def is_complete(self, head: Answer) -> bool:
        return head.get("Upload-Complete") == "?1"


Dialect = Tus | Ietf
