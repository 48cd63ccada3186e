"""Verify access tokens, which are JWTs (RFC 7519) of the integrator, and turn their claims into a principal.

The allowed algorithms come from the settings, the keys from `keys`; a token's header only selects among them by name. Not for:
upload tokens (`upload_tokens.py`), revocations (`revocation.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jwt

from tusd_py.auth.keys import Keys
from tusd_py.auth.principal import MAX_OWNER, Limits, Principal, Right
from tusd_py.auth.upload_tokens import TYPE as UPLOAD_TYPE
from tusd_py.auth.upload_tokens import BadToken, is_time, unverified_header

logger = logging.getLogger(__name__)

_MAX_NUMBER_BITS = 128
_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Expectations:
    """Requirements for access tokens. leeway: seconds by which clocks may differ.

    algorithms: the allowed ones, whatever a token says. owner_claims: claims whose values, in order, make the owner.
    """

    algorithms: Sequence[str] = ("HS256",)
    issuer: str | None = None
    audience: Sequence[str] = ()
    leeway: float = 30.0
    required_claims: Sequence[str] = ()
    owner_claims: Sequence[str] = ("sub",)
    scope_claim: str = "scope"
    max_upload_size_claim: str = "max_upload_size"
    max_open_uploads_claim: str = "max_open_uploads"
    quota_bytes_claim: str = "quota_bytes"
    quota_uploads_claim: str = "quota_uploads"
    scopes: Mapping[str, Right] = field(
        default_factory=lambda: {f"uploads:{right.value}": right for right in Right}
    )


class AccessTokens:
    """Verifies access tokens."""

    def __init__(self, keys: Keys, expected: Expectations) -> None:
        self.keys = keys
        self.expected = expected
        self._decoder = jwt.PyJWT({"enforce_minimum_key_length": True})
        self._required = ["exp", *expected.owner_claims, *expected.required_claims]
        if expected.issuer is not None:
            self._required.append("iss")
        if expected.audience:
            self._required.append("aud")

    async def verify(self, token: str) -> Principal:
        """Verify a token. Raises BadToken, KeysUnavailable."""
        return self.principal(await self.claims(token))

    async def claims(self, token: str) -> Mapping[str, object]:
        """Verify a token and return its claims. Raises BadToken, KeysUnavailable."""
        header = unverified_header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self.expected.algorithms:
            raise BadToken("the token is signed with an algorithm that does not count here")
        if header.get("typ") == UPLOAD_TYPE:
            raise BadToken("an upload token is no access token")
        if kid is not None and not isinstance(kid, str):
            raise BadToken("the token is malformed")
        for key in await self.keys.candidates(kid, algorithm):
            try:
                return self._decode(token, key, algorithm)
            except jwt.InvalidSignatureError:
                continue
        raise BadToken("the token's signature is not valid")

    def _decode(self, token: str, key: bytes | jwt.PyJWK, algorithm: str) -> dict[str, object]:
        try:
            return self._decoder.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=list(self.expected.audience) or None,
                issuer=self.expected.issuer,
                leeway=self.expected.leeway,
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

    def principal(self, claims: Mapping[str, object]) -> Principal:
        """The principal of the claims. Raises BadToken for an invalid limit, owner or time of issue."""
        expected = self.expected
        issued_at = claims.get("iat", 0)
        if isinstance(issued_at, int | float) and not is_time(issued_at):
            raise BadToken("the claim iat is not a time")
        scopes = claims.get(expected.scope_claim, ())
        counted = (expected.max_open_uploads_claim, expected.quota_uploads_claim)
        named = scopes.split() if isinstance(scopes, str) else scopes
        return Principal(
            owner=self._owner(claims),
            rights=frozenset(
                expected.scopes[name]
                for name in (named if isinstance(named, list | tuple) else ())
                if isinstance(name, str) and name in expected.scopes
            ),
            issued_at=float(issued_at) if is_time(issued_at) else 0.0,
            limits=Limits(
                max_upload_size=_limit(claims, expected.max_upload_size_claim),
                max_open_uploads=min(
                    (most for name in counted if (most := _limit(claims, name)) is not None),
                    default=None,
                ),
                quota_bytes=_limit(claims, expected.quota_bytes_claim),
            ),
        )

    def _owner(self, claims: Mapping[str, object]) -> str:
        names = [_name(name, claims.get(name)) for name in self.expected.owner_claims]
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
