"""Who asks, as their tokens have shown, and what that allows. Plain values: no tokens, no keys, no sockets.

Not for: whether a token is genuine (`verify`, `tokens`), and whether it was taken back since (`authority`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Right(Enum):
    """What a scope of an access token stands for; the names of scopes are the operator's."""

    CREATE = "create"
    READ = "read"
    DELETE = "delete"
    ADMIN = "admin"


class Action(Enum):
    """What is done to one upload."""

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
"""The rights of which an owner needs one. Whoever has ADMIN needs no other, and need not be the owner."""

GRANTED = frozenset((Action.INSPECT, Action.APPEND, Action.JOIN, Action.DELETE, Action.REFRESH))
"""What an upload token allows with its upload."""

GROWING = frozenset((Action.APPEND, Action.JOIN, Action.REFRESH))
"""What nobody but an admin may do with an upload that was revoked."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an access token says about the uploads that are created with it; None for no limit. Bytes, and a number."""

    max_upload_size: int | None = None
    max_open_uploads: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """An upload token that was shown. owner: whose upload it is. issued_at: seconds since the epoch."""

    owner: str
    issued_at: float


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. owner and rights are those of an access token, empty without one; grants are upload tokens by upload id.

    issued_at: when the access token was, in seconds since the epoch. unrestricted: nobody is asked who they are here, or it is
    the server itself.
    """

    owner: str = ""
    rights: frozenset[Right] = frozenset()
    issued_at: float = 0.0
    limits: Limits = Limits()
    grants: Mapping[str, Grant] = field(default_factory=dict)
    unrestricted: bool = False

    @property
    def is_admin(self) -> bool:
        """Whether all uploads are theirs to look after."""
        return self.unrestricted or Right.ADMIN in self.rights


ANYBODY = Principal(unrestricted=True)
"""Everybody where nobody is authenticated, and the server where it acts by itself."""
