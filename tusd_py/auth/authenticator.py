"""Authenticate requests by their tokens, and issue upload tokens.

`Authorization: Bearer` carries an access token or an upload token, `Upload-Token` further upload tokens (of parts to join).
Tokens in URLs are ignored, and tokens are not passed on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace

from tusd_py.auth.access_tokens import AccessTokens
from tusd_py.auth.keys import KeysUnavailable
from tusd_py.auth.policy import AccessPolicy
from tusd_py.auth.principal import Grant, Principal
from tusd_py.auth.revocation import Revocations
from tusd_py.auth.upload_tokens import TYPE, BadToken, UploadTokens, unverified_header
from tusd_py.protocol import errors

logger = logging.getLogger(__name__)

_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/=-]+)", re.IGNORECASE)
_MAX_GRANTS = 1000


class Authenticator:
    """Authenticates requests; `start` it first, `stop` it in the end."""

    def __init__(
        self,
        access_tokens: AccessTokens,
        upload_tokens: UploadTokens,
        revocations: Revocations,
        access_policy: AccessPolicy,
    ) -> None:
        self.upload_tokens = upload_tokens
        self.revocations = revocations
        self.access_policy = access_policy
        self._access_tokens = access_tokens

    async def start(self) -> None:
        """Load the keys and the revocations, and keep them up to date."""
        await self._access_tokens.keys.start()
        await self.revocations.start()

    async def stop(self) -> None:
        """Stop the updates in the background."""
        await self.revocations.stop()
        await self._access_tokens.keys.stop()

    async def authenticate(self, headers: Mapping[str, str], *, grace: bool = False) -> Principal:
        """Authenticate a request by its header fields.

        Args:
            headers: Names in lower case.
            grace: Accept upload tokens that expired within the grace period.

        Raises:
            ProtocolError: 401 for a missing, invalid or revoked token; 503 while keys or revocations are unavailable.
        """
        if not self.revocations.ready:
            raise errors.unavailable()
        try:
            principal = await self._principal(headers, grace)
        except BadToken as problem:
            raise errors.invalid_token(str(problem)) from None
        except KeysUnavailable as problem:
            logger.warning("tokens cannot be verified: %s", problem)
            raise errors.unavailable() from None
        self.access_policy.check_standing(principal)
        return principal

    async def _principal(self, headers: Mapping[str, str], grace: bool) -> Principal:
        field = headers.get("authorization")
        further = [
            token for each in headers.get("upload-token", "").split(",") if (token := each.strip())
        ]
        if field is None and not further:
            raise errors.unauthenticated()
        if len(further) > _MAX_GRANTS:
            raise BadToken("there are too many upload tokens")
        principal = Principal()
        if field is not None:
            found = _BEARER.fullmatch(field)
            if found is None:
                raise BadToken("Authorization must be Bearer and one token")
            token = found[1]
            if unverified_header(token).get("typ") == TYPE:
                further.insert(0, token)
            else:
                principal = await self._access_tokens.verify(token)
        grants: dict[str, Grant] = {}
        for token in further:
            upload_id, grant = self.upload_tokens.verify(token, grace=grace)
            grants[upload_id] = grant
        return replace(principal, grants=grants)

    def headers_for(self, upload_id: str, owner: str) -> dict[str, str]:
        """Issue an upload token, as header fields for the response to a creation."""
        return self.upload_tokens.issue(upload_id, owner).headers()
