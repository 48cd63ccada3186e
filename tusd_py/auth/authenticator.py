"""The gate: from a request's header fields to who asks. It also issues upload tokens, so that whoever has it has all of tokens.

Tokens come in `Authorization: Bearer`, an access token or an upload token, and further upload tokens (of parts that are to be
joined) in `Upload-Token`. They are never taken from URLs, and go nowhere from here.
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
    """Finds out who asks. It has to be started, and stopped."""

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
        """Gets the keys and what was revoked."""
        await self._access_tokens.keys.start()
        await self.revocations.start()

    async def stop(self) -> None:
        """Ends what goes on in the background."""
        await self.revocations.stop()
        await self._access_tokens.keys.stop()

    async def authenticate(self, headers: Mapping[str, str], *, grace: bool = False) -> Principal:
        """Who sends a request with these fields (names in lower case).

        grace: upload tokens count that ran out less than the grace period ago. Raises a 401 without a token, for one that does
        not count and for one that was revoked; a 503 while nobody can tell.
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
        """The fields with which a creation answers."""
        return self.upload_tokens.issue(upload_id, owner).headers()
