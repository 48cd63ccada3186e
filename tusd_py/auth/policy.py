"""Who may do what to which upload: the one place where that is decided, from plain values, without waiting for anything.

Strangers are answered as if the upload did not exist (404); whoever knows that it exists but lacks a right is told so (403);
what was taken back counts as never given (401). Not for: tokens, and where revocations come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tusd_py.auth.principal import GRANTED, GROWING, NEEDED, Action, Principal, Right
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError


class Revoked(Protocol):
    """What was taken back."""

    def owner_since(self, owner: str) -> float | None:
        """Tokens of `owner` issued until then (seconds since the epoch) are void; None if none are."""

    def has_upload(self, upload_id: str) -> bool:
        """Whether the upload was revoked."""


class _Nothing:
    def owner_since(self, _owner: str) -> float | None:
        return None

    def has_upload(self, _upload_id: str) -> bool:
        return False


class AccessPolicy:
    """Decides. Every refusal is a ProtocolError. scopes: what the operator calls each right."""

    def __init__(
        self, revoked: Revoked | None = None, scopes: Mapping[Right, str] | None = None
    ) -> None:
        self._revoked: Revoked = revoked or _Nothing()
        self.scopes: Mapping[Right, str] = scopes or {right: right.value for right in Right}

    def check(self, principal: Principal, upload_id: str, owner: str, action: Action) -> None:
        """Raises unless `principal` may do `action` to the upload, which is `owner`'s.

        Asked again whenever time has passed since: what was revoked meanwhile is noticed, that a token ran out is not.
        """
        if principal.unrestricted:
            return
        self.check_standing(principal)
        if principal.is_admin:
            return
        # An id that a hook gave out again may be somebody else's by now.
        grant = principal.grants.get(upload_id)
        holds_token = grant is not None and grant.owner == owner
        if holds_token and action in GRANTED:
            return
        if not owner or owner != principal.owner:
            raise self._lacking(action) if holds_token else errors.not_found()
        if not NEEDED[action] & principal.rights:
            raise self._lacking(action)
        if action in GROWING and self._revoked.has_upload(upload_id):
            raise errors.revoked()

    def check_standing(self, principal: Principal) -> None:
        """Raises a 401 if one of the tokens that were shown was taken back, with its upload or with all of its owner."""
        if any(self._revoked.has_upload(upload_id) for upload_id in principal.grants):
            raise errors.invalid_token("the token was revoked")
        tokens = [(grant.owner, grant.issued_at) for grant in principal.grants.values()]
        if principal.owner:
            tokens.append((principal.owner, principal.issued_at))
        for owner, issued_at in tokens:
            since = self._revoked.owner_since(owner)
            if since is not None and issued_at <= since:
                raise errors.invalid_token("the token was revoked")

    def creator(self, principal: Principal, parts: Sequence[str]) -> str:
        """Whose a new upload will be. Raises a 403 for those who may not create one.

        parts: ids that it is joined from. Whoever holds the tokens of all of them may join them without an access token,
        which may well have run out while they were uploaded.
        """
        if principal.unrestricted:
            return ""
        self.check_standing(principal)
        if principal.rights & {Right.CREATE, Right.ADMIN}:
            return principal.owner
        if parts and all(part in principal.grants for part in parts):
            owners = {principal.grants[part].owner for part in parts}
            if len(owners) == 1:
                return owners.pop()
        raise errors.insufficient_scope(self.scopes[Right.CREATE])

    def knows_of(self, principal: Principal, upload_id: str) -> bool:
        """Whether somebody may be told what became of an upload of which nothing is left, its owner neither."""
        return principal.is_admin or upload_id in principal.grants

    def _lacking(self, action: Action) -> ProtocolError:
        right = min(NEEDED[action], key=lambda needed: needed.value)
        return errors.insufficient_scope(self.scopes[right])
