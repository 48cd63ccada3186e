"""The name of every key in Redis; `docs/state.md` describes their values.

The part in braces is the hash tag, which decides where a Redis Cluster puts a key, so keys that one script uses share it: the
upload's id for keys of an upload, the fingerprint for those of a fingerprint.
"""

from __future__ import annotations

import hashlib

DEFAULT_PREFIX = "tusd:"


class Keys:
    """Key names under one prefix."""

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        self.prefix = prefix
        self.probe = f"{prefix}{{server}}:probe"
        """Written to test whether Redis accepts writes; expires."""
        self.since = f"{prefix}{{server}}:since"
        """A random mark, by whose loss an emptied Redis is noticed."""
        self.registry = f"{prefix}{{registry}}:due"
        """Uploads by the time at which they are due for a sweep."""
        self.open_states = f"{prefix}{{registry}}:open"
        """Uploads that are open, by their state."""
        self.registry_whole = f"{prefix}{{registry}}:whole"
        """A mark that the index has every upload of the storage; lost when Redis is emptied."""
        self.registry_data = f"{prefix}{{registry}}:data"
        """A random mark of the data that are in Redis now; lost when Redis is emptied."""
        self.listed = f"{prefix}{{registry}}:listed"
        """A mark that an operators' API lists uploads: "whole", or "building"; expires a week after the last of them."""
        self.live_watched = f"{prefix}{{live}}:watched"
        """A mark that an operator looks at what is being received; expires in seconds."""
        self.live_bodies = f"{prefix}{{live}}:bodies"
        """What each process receives now, while an operator looks; expires in seconds."""
        self.sweeps = f"{prefix}{{registry}}:sweeps"
        """Results of the last sweep of each kind."""
        self.scheduler = f"{prefix}{{registry}}:scheduler"
        """When a scheduler was last active; expires."""
        self.jobs = f"{prefix}{{registry}}:jobs"
        """The last report of a scheduler on queues and workers; expires after a minute."""
        self.without_workers = f"{prefix}{{registry}}:without-workers"
        """A mark of servers that sweep and call hooks by themselves, and need no worker; expires after the last one."""
        self.sweep_lock = f"{prefix}{{registry}}:lock"
        """The lease of the running sweep; expires if its process dies."""
        self.deliveries = f"{prefix}{{deliveries}}:counts"
        """Counts of events delivered, attempts failed and events given up."""
        self.revoked = f"{prefix}{{revoked}}:all"
        """Revoked uploads and owners, and when (milliseconds since the epoch, to the microsecond)."""
        self.revoked_version = f"{prefix}{{revoked}}:version"
        """Changes with every revocation."""
        self.revoked_log = f"{prefix}{{revoked}}:log"
        """The last revocations, by the number of the change."""
        self.quotas_wanted = f"{prefix}{{quotas}}:wanted"
        """A mark that the bytes of owners are counted: "whole", or "building" until those of all uploads are."""
        self.all_quotas = f"{_escaped(prefix)}quota:*"
        """The SCAN pattern of the bytes of all owners."""
        self.all_duplicates = f"{_escaped(prefix)}duplicate:*"
        """The SCAN pattern of all fingerprints."""

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

    def listing(self, part: str) -> str:
        """A part of the list of uploads: sets by time and state, words to search for, facts, totals of owners."""
        return f"{self.prefix}{{registry}}:list:{part}"

    def live_history(self, period: str) -> str:
        """Counts of all servers in one period; expires."""
        return f"{self.prefix}{{live}}:history:{period}"

    def delivery_lease(self, upload_id: str) -> str:
        """The lease of the worker that delivers an upload's events; expires if it dies."""
        return f"{self.prefix}turn:{{{upload_id}}}"

    def refreshes(self, upload_id: str) -> str:
        """Number of renewals of an upload's token in the last minute; expires after it."""
        return f"{self.prefix}refreshes:{{{upload_id}}}"

    def open_uploads(self, owner: str) -> str:
        """Unfinished uploads of an owner, by the time of the last check (milliseconds since the epoch)."""
        return f"{self.prefix}open:{{{_digest(owner)}}}"

    def quota(self, owner: str) -> str:
        """The bytes of each upload of an owner, and their sum."""
        return f"{self.prefix}quota:{{{_digest(owner)}}}"

    def upload_directory(self, path: str) -> str:
        """The ids of the upload directories that were served at a path."""
        return f"{self.prefix}directory:{{{_digest(path)}}}"


def _escaped(text: str) -> str:
    """Escape a text for a glob pattern."""
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
