"""Access tokens and upload tokens of every kind for tests, made without the server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping

from tusd_py.auth.keys import secrets
from tusd_py.auth.upload_tokens import UploadTokens

SECRET = "an-integrator-s-secret-0123456789-abcdefghij"
ALL = "uploads:create uploads:read uploads:delete"
TTL, GRACE = 60.0, 100.0


def encoded(part: object) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def forged(header: Mapping[str, object], claims: Mapping[str, object], key: bytes = b"") -> str:
    """A token with any header, signed with HMAC-SHA256 whatever it says; unsigned without a key."""
    text = f"{encoded(header)}.{encoded(claims)}"
    signature = hmac.digest(key, text.encode(), hashlib.sha256) if key else b""
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def claims(owner: object = "alice", scope: object = ALL, **more: object) -> dict[str, object]:
    """Claims of a valid access token, for a day; None removes one."""
    now = int(time.time())
    found = {"sub": owner, "scope": scope, "iat": now, "exp": now + 86_400, **more}
    return {name: value for name, value in found.items() if value is not None}


def access(owner: object = "alice", scope: object = ALL, **more: object) -> str:
    """An access token."""
    return forged({"alg": "HS256", "typ": "JWT"}, claims(owner, scope, **more), SECRET.encode())


def upload_tokens(age: float = 0.0, now: float | None = None) -> UploadTokens:
    """The upload tokens of a server with `SECRET`, `age` seconds ago; `now`: a fixed clock."""
    keys = secrets.derived(secrets.parse(SECRET, "the test"))
    return UploadTokens(keys, ttl=TTL, grace=GRACE, clock=lambda: (now or time.time()) - age)


def upload_token(upload_id: str, owner: str = "alice", age: float = 0.0) -> str:
    """An upload token that was issued `age` seconds ago."""
    return upload_tokens(age).issue(upload_id, owner).token


def bearer(token: str) -> dict[str, str]:
    """The field that shows a token."""
    return {"Authorization": f"Bearer {token}"}
