"""Lua scripts that run inside Redis, each of them one atomic change.

They are defined beside the code that uses them; those that renew and release the lock of sweeps are redis-py's own.
"""

from __future__ import annotations

import hashlib


class Script:
    """A Lua script and the digest under which Redis caches it.

    Every key it touches must be given as a key, and all of them must have the same {hash tag}.
    A script may run twice if a reply was lost, so it must be idempotent.
    """

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str, source: str) -> None:
        """`name` is for log lines."""
        self.name = name
        self.source = source
        # Redis identifies scripts by SHA-1; nothing depends on its security.
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        return f"Script({self.name!r})"
