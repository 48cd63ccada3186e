"""The part of the settings that the operations on uploads need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import Upload


@dataclass(frozen=True, slots=True)
class UploadPolicy:
    """What the operator allows. Sizes in bytes, times in seconds.

    0 means no limit for max_size, disk_reserve, expire_after, retain_finished and max_concat_repeats. quota_uploads: unfinished
    uploads of one owner; 0 for no limit. max_concat_repeats: bytes that parts may add to a final by being listed again.
    """

    max_size: int = 0
    disk_reserve: int = 0
    durability: Literal["none", "finish", "chunk"] = "finish"
    expire_after: float = 7 * 86400.0
    retain_finished: float = 0.0
    tombstone_ttl: float = 30 * 86400.0
    acquire_lock_timeout: float = 20.0
    progress_interval: float = 1.0
    termination: bool = True
    concatenation: bool = True
    max_concat_repeats: int = 1024**3
    remove_parts_when_joined: bool = False
    downloads: bool = True
    quota_uploads: int = 0

    def most_bytes(self, own: int | None) -> int | None:
        """The maximum size of an upload with the limit `own` of its owner, in bytes; None for no limit."""
        limits = [limit for limit in (self.max_size or None, own) if limit is not None]
        return min(limits, default=None)

    def within(self, store_bytes: int | None) -> Self:
        """The policy for a store that takes uploads of so many bytes at most; None for no limit."""
        most = self.most_bytes(store_bytes)
        return self if most is None else replace(self, max_size=most)

    def limit_of(self, upload: Upload) -> tuple[int | None, Callable[[], ProtocolError]]:
        """The maximum size of an upload in bytes, None for no limit, and the refusal of more."""
        most, in_place = self.most_bytes(upload.info.max_size), upload.most_bytes
        if in_place is not None and (most is None or in_place < most):
            return in_place, partial(errors.unknown_length_exceeded, in_place)
        return most, partial(errors.max_size_exceeded, most or 0)

    def check_length(self, upload: Upload, length: int | None) -> None:
        """Raise a 413 for a length that an upload cannot have. None if it is unknown."""
        most, refusal = self.limit_of(upload)
        if length is not None and most is not None and length > most:
            raise refusal()
