"""Lua scripts that run inside Redis: one for each change of state, so that nobody sees half of it.

The scripts themselves stand with what they are for; here is what they have in common.
"""

from __future__ import annotations

import hashlib


class Script:
    """A Lua script and the name under which Redis remembers it.

    Every key it touches must be given as a key, and all of them must have the same {hash tag}.
    A script may run twice when an answer was lost, so its second run must do no harm.
    """

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str, source: str) -> None:
        """`name` is for log lines."""
        self.name = name
        self.source = source
        # Redis' name for it; nothing depends on its being hard to forge.
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        return f"Script({self.name!r})"
