"""Decide which principal may do what to which upload. All such decisions are here, without I/O.

A principal without any access to an upload gets a 404, as if it did not exist; one that lacks a right a 403; one whose token is
revoked a 401. Not for: verifying tokens, reading revocations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tusd_py.auth.principal import GRANTED, GROWING, NEEDED, Action, Principal, Right
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError


class Revoked:
    """The revocations; of this class itself, none."""

    def owner_since(self, _owner: str) -> float | None:
        """The time until which tokens of an owner are revoked, in seconds since the epoch; None if none are."""
        return None

    def has_upload(self, _upload_id: str) -> bool:
        """Whether an upload was revoked."""
        return False


class AccessPolicy:
    """Checks access; every refusal is a ProtocolError. scopes: the operator's name for each right."""

    def __init__(
        self, revoked: Revoked | None = None, scopes: Mapping[Right, str] | None = None
    ) -> None:
        self._revoked = revoked or Revoked()
        self.scopes: Mapping[Right, str] = scopes or {right: right.value for right in Right}

    def check(self, principal: Principal, upload_id: str, owner: str, action: Action) -> None:
        """Raise unless `principal` may do `action` to an upload of `owner`.

        Called again while a request runs: it then notices revocations, but not that a token has expired.
        """
        if principal.unrestricted:
            return
        self.check_standing(principal)
        if principal.is_admin:
            return
        # A hook may have reused the id for an upload of another owner.
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
        """Raise a 401 if a token of the request is revoked, by its upload or by its owner."""
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
        """The owner of a new upload. Raises a 403 if the principal may not create one.

        parts: ids of the parts of a final. The tokens of all of them suffice without an access token, which may have expired
        while they were uploaded.
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
        """Whether the principal may learn that an upload was removed; its owner is not known any more."""
        return principal.is_admin or upload_id in principal.grants

    def _lacking(self, action: Action) -> ProtocolError:
        right = min(NEEDED[action], key=lambda needed: needed.value)
        return errors.insufficient_scope(self.scopes[right])
