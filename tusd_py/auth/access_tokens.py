"""Verify access tokens, which are JWTs (RFC 7519) of the integrator, and turn their claims into a principal.

The allowed algorithms come from the settings, the keys from `keys`; a token's header only selects among them by name. Not for:
upload tokens (`upload_tokens.py`), revocations (`revocation.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import jwt

from tusd_py.auth.keys import Keys
from tusd_py.auth.principal import MAX_OWNER, Limits, Principal, Right
from tusd_py.auth.upload_tokens import TYPE as UPLOAD_TYPE
from tusd_py.auth.upload_tokens import BadToken, is_time, unverified_header
from tusd_py.settings.model import Settings

BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/=-]+)", re.IGNORECASE)
"""An `Authorization` field with a token."""
_MAX_NUMBER_BITS = 128
_MOST = 2**63 - 1


class AccessTokens:
    """Verifies access tokens by the settings, and knows clients by them: a `Source` of the authenticator.

    algorithms: the allowed ones, whatever a token says. rights: by the operator's names of scopes.
    """

    def __init__(
        self,
        keys: Keys,
        settings: Settings,
        *,
        algorithms: Sequence[str],
        rights: Mapping[str, Right],
    ) -> None:
        self._keys = keys
        self._settings = settings
        self._algorithms = algorithms
        self._rights = rights
        self._decoder = jwt.PyJWT({"enforce_minimum_key_length": True})
        self._required = ["exp", *settings.jwt_owner_claims, *settings.jwt_required_claims]
        if settings.jwt_issuer is not None:
            self._required.append("iss")
        if settings.jwt_audience:
            self._required.append("aud")
        self.start = keys.start
        self.stop = keys.stop

    async def identify(self, authorization: str | None, _scope: object) -> Principal | None:
        """The client that the access token of a request names. Raises BadToken, KeysUnavailable."""
        if authorization is None:
            return None
        found = BEARER.fullmatch(authorization)
        if found is None:
            raise BadToken("Authorization must be Bearer and one token")
        return await self.verify(found[1])

    async def verify(self, token: str) -> Principal:
        """Verify a token. Raises BadToken, KeysUnavailable."""
        header = unverified_header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise BadToken("the token is signed with an algorithm that does not count here")
        if header.get("typ") == UPLOAD_TYPE:
            raise BadToken("an upload token is no access token")
        if kid is not None and not isinstance(kid, str):
            raise BadToken("the token is malformed")
        for key in await self._keys.candidates(kid, algorithm):
            try:
                return self._principal(self._decode(token, key, algorithm))
            except jwt.InvalidSignatureError:
                continue
        raise BadToken("the token's signature is not valid")

    def _decode(self, token: str, key: bytes | jwt.PyJWK, algorithm: str) -> dict[str, object]:
        try:
            return self._decoder.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=list(self._settings.jwt_audience) or None,
                issuer=self._settings.jwt_issuer,
                leeway=self._settings.jwt_leeway,
                # Many issuers write numbers into `sub`, which `_owner` checks. `jti` is not used.
                options={"require": self._required, "verify_sub": False, "verify_jti": False},
            )
        except jwt.InvalidSignatureError:
            raise
        except jwt.ExpiredSignatureError:
            raise BadToken("the token has expired") from None
        except jwt.PyJWTError as problem:
            # The exception's text may contain the token.
            raise BadToken(f"the token does not count here ({type(problem).__name__})") from None

    def _principal(self, claims: Mapping[str, object]) -> Principal:
        """The principal of the claims. Raises BadToken for an invalid limit, owner or time of issue."""
        settings = self._settings
        issued_at = claims.get("iat", 0)
        if isinstance(issued_at, int | float) and not is_time(issued_at):
            raise BadToken("the claim iat is not a time")
        scopes = claims.get(settings.jwt_scope_claim, ())
        named = scopes.split() if isinstance(scopes, str) else scopes
        counts = (settings.jwt_max_open_uploads_claim, settings.jwt_quota_uploads_claim)
        return Principal(
            owner=self._owner(claims),
            rights=frozenset(
                self._rights[name]
                for name in (named if isinstance(named, list | tuple) else ())
                if isinstance(name, str) and name in self._rights
            ),
            issued_at=float(issued_at) if is_time(issued_at) else 0.0,
            limits=Limits(
                max_upload_size=_limit(claims, settings.jwt_max_upload_size_claim),
                max_open_uploads=min(
                    (most for name in counts if (most := _limit(claims, name)) is not None),
                    default=None,
                ),
                quota_bytes=_limit(claims, settings.jwt_quota_bytes_claim),
            ),
        )

    def _owner(self, claims: Mapping[str, object]) -> str:
        names = [_name(name, claims.get(name)) for name in self._settings.jwt_owner_claims]
        # Escaped, so that different lists of values never make the same owner.
        owner = (
            names[0]
            if len(names) == 1
            else "/".join(name.replace("%", "%25").replace("/", "%2F") for name in names)
        )
        if len(owner) > MAX_OWNER or not owner.isprintable():
            raise BadToken("the token does not say whose it is in a way that can be used")
        return owner


def _name(claim: str, value: object) -> str:
    """A claim of the owner as text; a whole number as its decimal digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        # Bounded, as the conversion to decimal takes quadratic time.
        value = str(value) if value.bit_length() <= _MAX_NUMBER_BITS else ""
    if not isinstance(value, str) or not value:
        raise BadToken(f"the claim {claim} must be a text or a whole number")
    return value


def _limit(claims: Mapping[str, object], name: str) -> int | None:
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        raise BadToken(f"the claim {name} is not a whole number")
    return value
