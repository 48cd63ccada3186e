"""The part of the settings that the operations on uploads need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class UploadPolicy:
    """What the operator allows. Sizes in bytes, times in seconds.

    0 means no limit for max_size, disk_reserve, expire_after, retain_finished and max_concat_repeats. max_concat_repeats: bytes
    that parts may add to a final by being listed again.
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

    def most_bytes(self, own: int | None) -> int | None:
        """The maximum size of an upload with the limit `own` of its owner, in bytes; None for no limit."""
        limits = [limit for limit in (self.max_size or None, own) if limit is not None]
        return min(limits, default=None)
