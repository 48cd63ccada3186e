"""The name of every key that is kept in Redis; `docs/state.md` tells what is in them.

The part in braces decides where a Redis Cluster puts a key, so keys that one script touches have
the same. What is an upload's has the upload's id there, what is a fingerprint's the fingerprint.
"""

from __future__ import annotations

import hashlib

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

    def registry(self) -> str:
        """Uploads by the time at which they are due."""
        return f"{self.prefix}{{registry}}:due"

    def registry_whole(self) -> str:
        """A mark that the registry knows every upload of the storage; gone when Redis was emptied."""
        return f"{self.prefix}{{registry}}:whole"

    def sweeps(self) -> str:
        """What the last sweep of each kind did."""
        return f"{self.prefix}{{registry}}:sweeps"

    def scheduler(self) -> str:
        """When a scheduler last looked; gone soon after the last of them is."""
        return f"{self.prefix}{{registry}}:scheduler"

    def jobs(self) -> str:
        """What a scheduler last reported of queues and workers; gone a minute after the last of them is."""
        return f"{self.prefix}{{registry}}:jobs"

    def sweep_lock(self) -> str:
        """Which sweep is running; goes when its process dies."""
        return f"{self.prefix}{{registry}}:lock"

    def delivery_lease(self, upload_id: str) -> str:
        """Which worker tells the events of an upload; goes when the worker dies."""
        return f"{self.prefix}turn:{{{upload_id}}}"

    def deliveries(self) -> str:
        """How many events were delivered, how many attempts failed, how many events were given up."""
        return f"{self.prefix}{{deliveries}}:counts"

    def revoked(self) -> str:
        """Which uploads and owners were revoked, and when (milliseconds since the epoch, to the microsecond)."""
        return f"{self.prefix}{{revoked}}:all"

    def revoked_version(self) -> str:
        """Changes with every revocation."""
        return f"{self.prefix}{{revoked}}:version"

    def revoked_log(self) -> str:
        """What was revoked last, by the number of the change."""
        return f"{self.prefix}{{revoked}}:log"

    def refreshes(self, upload_id: str) -> str:
        """How often an upload's token was renewed in the last minute; goes after it."""
        return f"{self.prefix}refreshes:{{{upload_id}}}"

    def open_uploads(self, owner: str) -> str:
        """The uploads of an owner that were unfinished when they were last looked at (milliseconds since the epoch)."""
        digest = hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self.prefix}open:{{{digest}}}"

    def all_duplicates(self) -> str:
        """A pattern for SCAN."""
        return f"{_escaped(self.prefix)}duplicate:*"


def _escaped(text: str) -> str:
    """`text` for a pattern that matches nothing else."""
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)
