"""Issue and verify upload tokens: tokens of this server for one upload each, valid for a while.

They are JWTs with a type and keys of their own, so that they are never mistaken for access tokens. Not for: the integrator's
access tokens (`access_tokens.py`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import TypeGuard

import jwt

from tusd_py.auth.keys.secrets import Secret
from tusd_py.auth.principal import Grant

TYPE = "upload+jwt"
"""The `typ` in the header of upload tokens."""
_ALGORITHM = "HS256"
_AUDIENCE = "tusd-py:upload"
_MAX_TOKEN_CHARACTERS = 8192
_LAST_SECOND = 2.0**53
"""Since the epoch; floats hold all whole numbers up to it."""


class BadToken(Exception):
    """An invalid token. The text says why and is sent to the client; it contains nothing of the token."""


def is_time(value: object) -> TypeGuard[int | float]:
    """Whether a claim is a time in seconds since the epoch. JSON has numbers that no float can hold, and NaN."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 <= value <= _LAST_SECOND


@dataclass(frozen=True, slots=True)
class Issued:
    """A new upload token. expires_at: seconds since the epoch. lasts: seconds."""

    token: str
    expires_at: float
    lasts: float

    def headers(self) -> dict[str, str]:
        """The header fields of the response to a creation."""
        return {
            "Upload-Token": self.token,
            "Upload-Token-Expires": formatdate(self.expires_at, usegmt=True),
            "Cache-Control": "no-store",
        }


def unverified_header(token: str) -> Mapping[str, object]:
    """Parse the header of a token without verifying the signature. Raises BadToken."""
    if len(token) > _MAX_TOKEN_CHARACTERS:
        raise BadToken("the token is too long")
    try:
        header: dict[str, object] = jwt.get_unverified_header(token)
    except jwt.PyJWTError:
        raise BadToken("the token is malformed") from None
    if "crit" in header:
        raise BadToken("the token asks for what is not done here")
    return header


class UploadTokens:
    """Issues and verifies upload tokens. keys: the first one signs, all verify. ttl, grace: seconds."""

    def __init__(
        self,
        keys: Sequence[Secret],
        *,
        ttl: float,
        grace: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._signing = keys[0]
        self._keys = {key.kid: key.value for key in keys}
        self._ttl = ttl
        self._grace = grace
        self._clock = clock

    def issue(self, upload_id: str, owner: str, derived_at: float | None = None) -> Issued:
        """Issue a token for an upload of `owner`.

        derived_at: when the token was issued that this one derives from, in seconds since the epoch; a revocation of that one
        counts for this one too. None if it derives from none.
        """
        now = self._clock()
        token = jwt.encode(
            {
                "aud": _AUDIENCE,
                "sub": owner,
                "upload": upload_id,
                "iat": now,
                # The issuer's clock may be ahead.
                "auth_time": now if derived_at is None else min(now, derived_at),
                "exp": now + self._ttl,
                "jti": secrets.token_hex(8),
            },
            self._signing.value,
            algorithm=_ALGORITHM,
            headers={"typ": TYPE, "kid": self._signing.kid},
        )
        return Issued(token, now + self._ttl, self._ttl)

    def verify(self, token: str, *, grace: bool = False) -> tuple[str, Grant]:
        """Verify a token; returns the upload id and the grant. Raises BadToken.

        grace: accept a token that expired within the grace period.
        """
        header = unverified_header(token)
        kid = header.get("kid")
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None or header.get("typ") != TYPE:
            raise BadToken("the upload token is not one of this server's")
        try:
            claims: dict[str, object] = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                # Compared below, with our clock and with fractions of a second.
                options={
                    "require": ["exp", "iat", "sub", "upload"],
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
        except jwt.PyJWTError:
            raise BadToken("the upload token is not valid") from None
        match claims:
            case {"upload": str(upload_id), "sub": str(owner), "iat": issued_at, "exp": expires}:
                # Tokens of earlier versions lack the last.
                derived_at = claims.get("auth_time", issued_at)
                if is_time(issued_at) and is_time(expires) and is_time(derived_at):
                    if self._clock() >= expires + (self._grace if grace else 0.0):
                        raise BadToken("the upload token has expired")
                    return upload_id, Grant(owner, float(derived_at))
            case _:
                pass
        raise BadToken("the upload token is not valid")
