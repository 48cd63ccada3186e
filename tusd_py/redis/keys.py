"""The name of every key in Redis; `docs/state.md` describes their values.

The part in braces is the hash tag, which decides where a Redis Cluster puts a key, so keys that one script uses share it: the
upload's id for keys of an upload, the fingerprint for those of a fingerprint.
"""

from __future__ import annotations

import hashlib

DEFAULT_PREFIX = "tusd:"


class Keys:
    """Key names under one prefix."""

    __slots__ = ("prefix",)

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        self.prefix = prefix

    def probe(self) -> str:
        """Written to test whether Redis accepts writes; expires."""
        return f"{self.prefix}{{server}}:probe"

    def since(self) -> str:
        """A random mark, by whose loss an emptied Redis is noticed."""
        return f"{self.prefix}{{server}}:since"

    def lock(self, upload_id: str) -> str:
        """The holder of an upload's lock, or its last one; expires with the lease."""
        return f"{self.prefix}lock:{{{upload_id}}}"

    def lock_queue(self, upload_id: str) -> str:
        """The waiters for an upload's lock; expires soon after the last of them."""
        return f"{self.prefix}lock-queue:{{{upload_id}}}"

    def lock_channel(self, process: str) -> str:
        """A channel, not a key, on which a process is asked to release locks and is offered those that it waits for."""
        return f"{self.prefix}lock-channel:{process}"

    def duplicate(self, fingerprint: str) -> str:
        """The uploads that have a fingerprint (hexadecimal)."""
        return f"{self.prefix}duplicate:{{{fingerprint}}}"

    def registry(self) -> str:
        """Uploads by the time at which they are due for a sweep."""
        return f"{self.prefix}{{registry}}:due"

    def open_states(self) -> str:
        """Uploads that are open, by their state."""
        return f"{self.prefix}{{registry}}:open"

    def registry_whole(self) -> str:
        """A mark that the index has every upload of the storage; lost when Redis is emptied."""
        return f"{self.prefix}{{registry}}:whole"

    def listed(self) -> str:
        """A mark that an operators' API lists uploads: "whole", or "building"; expires a week after the last of them."""
        return f"{self.prefix}{{registry}}:listed"

    def listing(self, part: str) -> str:
        """A part of the list of uploads: sets by time and state, words to search for, facts, totals of owners."""
        return f"{self.prefix}{{registry}}:list:{part}"

    def live_watched(self) -> str:
        """A mark that an operator looks at what is being received; expires in seconds."""
        return f"{self.prefix}{{live}}:watched"

    def live_bodies(self) -> str:
        """What each process receives now, while an operator looks; expires in seconds."""
        return f"{self.prefix}{{live}}:bodies"

    def live_history(self, period: str) -> str:
        """Counts of all servers in one period; expires."""
        return f"{self.prefix}{{live}}:history:{period}"

    def sweeps(self) -> str:
        """Results of the last sweep of each kind."""
        return f"{self.prefix}{{registry}}:sweeps"

    def scheduler(self) -> str:
        """When a scheduler was last active; expires."""
        return f"{self.prefix}{{registry}}:scheduler"

    def jobs(self) -> str:
        """The last report of a scheduler on queues and workers; expires after a minute."""
        return f"{self.prefix}{{registry}}:jobs"

    def without_workers(self) -> str:
        """A mark of servers that sweep and call hooks by themselves, and need no worker; expires after the last one."""
        return f"{self.prefix}{{registry}}:without-workers"

    def sweep_lock(self) -> str:
        """The lease of the running sweep; expires if its process dies."""
        return f"{self.prefix}{{registry}}:lock"

    def delivery_lease(self, upload_id: str) -> str:
        """The lease of the worker that delivers an upload's events; expires if it dies."""
        return f"{self.prefix}turn:{{{upload_id}}}"

    def deliveries(self) -> str:
        """Counts of events delivered, attempts failed and events given up."""
        return f"{self.prefix}{{deliveries}}:counts"

    def revoked(self) -> str:
        """Revoked uploads and owners, and when (milliseconds since the epoch, to the microsecond)."""
        return f"{self.prefix}{{revoked}}:all"

    def revoked_version(self) -> str:
        """Changes with every revocation."""
        return f"{self.prefix}{{revoked}}:version"

    def revoked_log(self) -> str:
        """The last revocations, by the number of the change."""
        return f"{self.prefix}{{revoked}}:log"

    def refreshes(self, upload_id: str) -> str:
        """Number of renewals of an upload's token in the last minute; expires after it."""
        return f"{self.prefix}refreshes:{{{upload_id}}}"

    def open_uploads(self, owner: str) -> str:
        """Unfinished uploads of an owner, by the time of the last check (milliseconds since the epoch)."""
        digest = hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self.prefix}open:{{{digest}}}"

    def quota(self, owner: str) -> str:
        """The bytes of each upload of an owner, and their sum."""
        digest = hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self.prefix}quota:{{{digest}}}"

    def quotas_wanted(self) -> str:
        """A mark that the bytes of owners are counted: "whole", or "building" until those of all uploads are."""
        return f"{self.prefix}{{quotas}}:wanted"

    def all_quotas(self) -> str:
        """The SCAN pattern of the bytes of all owners."""
        return f"{_escaped(self.prefix)}quota:*"

    def upload_directory(self, path: str) -> str:
        """The ids of the upload directories that were served at a path."""
        digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self.prefix}directory:{{{digest}}}"

    def all_duplicates(self) -> str:
        """The SCAN pattern of all fingerprints."""
        return f"{_escaped(self.prefix)}duplicate:*"


def _escaped(text: str) -> str:
    """Escape a text for a glob pattern."""
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)
