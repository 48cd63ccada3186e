"""The name of every key that is kept in Redis; `docs/state.md` tells what is in them.

The part in braces decides where a Redis Cluster puts a key, so keys that one script touches have
the same. What is an upload's has the upload's id there, what is a fingerprint's the fingerprint.
"""

from __future__ import annotations

DEFAULT_PREFIX = "tusd:"


class Keys:
    """Names under one prefix."""

    __slots__ = ("prefix",)

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        self.prefix = prefix

    def probe(self) -> str:
        """Written to find out whether Redis takes writes; goes by itself."""
        return f"{self.prefix}{{server}}:probe"

    def since(self) -> str:
        """A mark that is gone when Redis was emptied."""
        return f"{self.prefix}{{server}}:since"

    def lock(self, upload_id: str) -> str:
        """Who may write to an upload, or who could last; goes when the lease runs out."""
        return f"{self.prefix}lock:{{{upload_id}}}"

    def lock_queue(self, upload_id: str) -> str:
        """Who waits for the lock on an upload; goes soon after the last of them is gone."""
        return f"{self.prefix}lock-queue:{{{upload_id}}}"

    def lock_channel(self, process: str) -> str:
        """A channel, not a key: where a process is asked for the locks that it holds, and is told
        that it may have the one for which it waits.
        """
        return f"{self.prefix}lock-channel:{process}"

    def duplicate(self, fingerprint: str) -> str:
        """Which upload has a fingerprint (hexadecimal)."""
        return f"{self.prefix}duplicate:{{{fingerprint}}}"

    def all_duplicates(self) -> str:
        """A pattern for SCAN."""
        return f"{_escaped(self.prefix)}duplicate:*"


def _escaped(text: str) -> str:
    """`text` for a pattern that matches nothing else."""
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)
