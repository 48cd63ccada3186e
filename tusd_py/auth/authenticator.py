"""Authenticate requests by their tokens, or by the application that the server is mounted in, and issue upload tokens.

`Authorization: Bearer` carries an access token or an upload token, `Upload-Token` further upload tokens (of parts to join).
Tokens in URLs are ignored, and tokens are not passed on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from typing import Any, Protocol

from tusd_py.auth.access_tokens import BEARER, AccessTokens
from tusd_py.auth.keys import KeysUnavailable
from tusd_py.auth.policy import AccessPolicy
from tusd_py.auth.principal import Grant, Principal
from tusd_py.auth.revocation import Revocations
from tusd_py.auth.upload_tokens import TYPE, BadToken, Issued, UploadTokens, unverified_header
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError

logger = logging.getLogger(__name__)

_MAX_GRANTS = 1000

Scope = MutableMapping[str, Any]
"""As ASGI has it."""


class Source(Protocol):
    """What knows who sends a request, but for upload tokens."""

    async def identify(self, authorization: str | None, scope: Scope | None) -> Principal | None:
        """The client of a request, None for nobody.

        authorization: the field, unless that has an upload token. scope: the request's in ASGI, where there is one. Raises
        BadToken, KeysUnavailable, ProtocolError.
        """

    async def start(self) -> None:
        """Load what is needed."""

    async def stop(self) -> None:
        """Stop the updates in the background."""


class Authenticator:
    """Authenticates requests; `start` it first, `stop` it in the end. source: knows clients without upload tokens."""

    def __init__(
        self,
        source: Source,
        upload_tokens: UploadTokens,
        revocations: Revocations,
        access_policy: AccessPolicy,
    ) -> None:
        self.upload_tokens = upload_tokens
        self.revocations = revocations
        self.access_policy = access_policy
        self._source = source

    async def start(self) -> None:
        """Load the keys and the revocations, and keep them up to date."""
        await self._source.start()
        await self.revocations.start()

    async def stop(self) -> None:
        """Stop the updates in the background."""
        await self.revocations.stop()
        await self._source.stop()

    @property
    def reads_tokens(self) -> bool:
        """Whether clients have access tokens; otherwise the application knows them."""
        return isinstance(self._source, AccessTokens)

    async def authenticate(
        self,
        headers: Mapping[str, str],
        scope: Scope | None = None,
        *,
        grace: bool = False,
    ) -> Principal:
        """Authenticate a request by its header fields.

        Args:
            headers: Names in lower case.
            scope: The request's, for an application.
            grace: Accept upload tokens that expired within the grace period.

        Raises:
            ProtocolError: 401 for a missing, invalid or revoked token; 503 while keys or revocations are unavailable.
        """
        if not self.revocations.ready:
            raise errors.unavailable()
        try:
            principal = await self._principal(headers, scope, grace)
        except BadToken as problem:
            raise errors.invalid_token(str(problem)) from None
        except KeysUnavailable as problem:
            logger.warning("tokens cannot be verified: %s", problem)
            raise errors.unavailable() from None
        self.access_policy.check_standing(principal)
        return principal

    async def _principal(
        self, headers: Mapping[str, str], scope: Scope | None, grace: bool
    ) -> Principal:
        field = headers.get("authorization")
        further = [
            token for each in headers.get("upload-token", "").split(",") if (token := each.strip())
        ]
        if len(further) > _MAX_GRANTS:
            raise BadToken("there are too many upload tokens")
        shown = None if field is None else _upload_token(field)
        if shown is not None:
            further.insert(0, shown)
            principal: Principal | None = Principal()
        else:
            principal = await self._source.identify(field, scope)
        if principal is None:
            if not further:
                raise self._unauthenticated()
            principal = Principal()
        grants: dict[str, Grant] = {}
        for token in further:
            upload_id, grant = self.upload_tokens.verify(token, grace=grace)
            grants[upload_id] = grant
        return replace(principal, grants=grants)

    def _unauthenticated(self) -> ProtocolError:
        refusal = errors.unauthenticated()
        if not self.reads_tokens:
            # Clients of an application have a session, perhaps, and no access token.
            refusal.message = "nobody is signed in, and there is no upload token"
        return refusal

    def issue(self, upload_id: str, owner: str, principal: Principal) -> Issued:
        """Issue an upload token to the client of a request, which may have been revoked meanwhile: then it does not count."""
        return self.upload_tokens.issue(upload_id, owner, principal.issued_at_for(upload_id, owner))

    def headers_for(self, upload_id: str, owner: str, principal: Principal) -> dict[str, str]:
        """Issue an upload token, as header fields for the response to a creation."""
        return self.issue(upload_id, owner, principal).headers()


def _upload_token(authorization: str) -> str | None:
    """The upload token in the field; None if it has something else, which the source judges."""
    found = BEARER.fullmatch(authorization)
    if found is None:
        return None
    try:
        is_ours = unverified_header(found[1]).get("typ") == TYPE
    except BadToken:
        return None
    return found[1] if is_ours else None
