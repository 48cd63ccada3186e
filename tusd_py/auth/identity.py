"""The client of a request as an application names it that authenticates by itself (`TusApp(authenticate=...)`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from tusd_py.auth.principal import MAX_OWNER, Limits, Principal, Right

RightName = Literal["create", "read", "delete", "admin"]
_RIGHTS = {right.value: right for right in Right}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sends a request, and what they may do; what `authenticate` returns.

    Args:
        owner: Identifies the user, such as `str(user.id)`: at most 256 printable characters. Uploads belong to whom it names.
        rights: `create` (create, resume, watch, join), `read` (download, watch), `delete` (remove, revoke), for one's own
            uploads; `admin` is all of it, for the uploads of all owners.
        max_upload_size: Maximum size of the owner's uploads, in bytes.
        max_open_uploads: Maximum number of the owner's unfinished uploads.

    Raises:
        ValueError: For an owner, a right or a limit that cannot be used.
        TypeError: For rights or a limit of a wrong type.
    """

    owner: str
    rights: Collection[RightName] = ("create", "read", "delete")
    max_upload_size: int | None = None
    max_open_uploads: int | None = None

    def __post_init__(self) -> None:
        owner: object = self.owner
        if not isinstance(owner, str) or not 0 < len(owner) <= MAX_OWNER or not owner.isprintable():
            raise ValueError(
                f"the owner of an Identity must be 1 to {MAX_OWNER} printable characters, not {owner!r}"
            )
        rights: object = self.rights
        if not isinstance(rights, Collection):
            raise TypeError(
                f"the rights of an Identity must be a list of {', '.join(_RIGHTS)}, not {rights!r}"
            )
        # A text would be a collection of letters.
        if isinstance(rights, str) or any(name not in _RIGHTS for name in rights):
            raise ValueError(
                f"the rights of an Identity must be a list of {', '.join(_RIGHTS)}, not {rights!r}"
            )
        for name in ("max_upload_size", "max_open_uploads"):
            limit: object = getattr(self, name)
            if limit is None:
                continue
            if not isinstance(limit, int):
                raise TypeError(
                    f"{name} of an Identity must be a whole number (int), not {type(limit).__name__}"
                )
            if limit < 0:
                raise ValueError(f"{name} of an Identity must not be negative: {limit}")

    def principal(self, now: float) -> Principal:
        """As the rules of access know it. now: seconds since the epoch."""
        return Principal(
            owner=self.owner,
            rights=frozenset(_RIGHTS[name] for name in self.rights),
            # So that revoking an owner ends the requests that run, and the application decides about the next one.
            issued_at=now,
            limits=Limits(self.max_upload_size, self.max_open_uploads),
        )
