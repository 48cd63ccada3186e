"""The client of a request as its tokens identify it, and the rights that actions need. Plain values.

Not for: verifying tokens (`access_tokens.py`, `upload_tokens.py`), deciding on access (`policy.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

MAX_OWNER = 256
"""Characters of an owner's name."""


class Right(Enum):
    """A right of an access token; the operator names the scopes that stand for them."""

    CREATE = "create"
    READ = "read"
    DELETE = "delete"
    ADMIN = "admin"


class Action(Enum):
    """An operation on one upload."""

    INSPECT = "inspect"
    APPEND = "append"
    JOIN = "join"
    DELETE = "delete"
    DOWNLOAD = "download"
    REFRESH = "refresh"
    REVOKE = "revoke"


NEEDED: Mapping[Action, frozenset[Right]] = {
    Action.INSPECT: frozenset((Right.CREATE, Right.READ)),
    Action.APPEND: frozenset((Right.CREATE,)),
    Action.JOIN: frozenset((Right.CREATE,)),
    Action.DELETE: frozenset((Right.DELETE,)),
    Action.DOWNLOAD: frozenset((Right.READ,)),
    Action.REFRESH: frozenset((Right.CREATE,)),
    Action.REVOKE: frozenset((Right.DELETE,)),
}
"""For each action the rights of which the owner needs one. ADMIN suffices for all, also for other owners' uploads."""

GRANTED = frozenset((Action.INSPECT, Action.APPEND, Action.JOIN, Action.DELETE, Action.REFRESH))
"""Actions that an upload token allows on its upload."""

GROWING = frozenset((Action.APPEND, Action.JOIN, Action.REFRESH))
"""Actions on a revoked upload that need ADMIN."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an access token for the uploads created with it: bytes, and a number of uploads; None for no limit.

    quota_bytes: of all uploads of the owner.
    """

    max_upload_size: int | None = None
    max_open_uploads: int | None = None
    quota_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """An upload token of a request. owner: of the upload.

    issued_at: when the access token was issued that it was first derived from, in seconds since the epoch.
    """

    owner: str
    issued_at: float


@dataclass(frozen=True, slots=True)
class Principal:
    """The client of a request. owner and rights: of its access token, empty without one. grants: upload tokens by upload id.

    issued_at: of the access token, in seconds since the epoch. unrestricted: for requests without authentication and for the
    server itself.
    """

    owner: str = ""
    rights: frozenset[Right] = frozenset()
    issued_at: float = 0.0
    limits: Limits = Limits()
    grants: Mapping[str, Grant] = field(default_factory=dict)
    unrestricted: bool = False

    def issued_at_for(self, upload_id: str, owner: str) -> float | None:
        """When the newest token of the request was issued that speaks for an upload of `owner`, in seconds since the epoch.

        None if none does, as for an admin. Upload tokens of parts speak for the final, if there is no access token.
        """
        own = self.grants.get(upload_id)
        times = [own.issued_at] if own is not None and own.owner == owner else []
        if owner and owner == self.owner:
            times.append(self.issued_at)
        if times:
            return max(times)
        of_parts = [each.issued_at for each in self.grants.values() if each.owner == owner]
        return min(of_parts, default=None)

    @property
    def is_admin(self) -> bool:
        """Whether the principal may act on all uploads."""
        return self.unrestricted or Right.ADMIN in self.rights


ANYBODY = Principal(unrestricted=True)
"""Any client of a server without authentication, and the server itself."""
