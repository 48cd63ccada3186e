"""Secrets shared with the integrator (HS256, HS384, HS512), and the keys for upload tokens that are derived from them.

A file has one secret a line, or `kid secret` if there are several; `#` begins a comment. The first one signs upload tokens.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jwt import PyJWK

MINIMUM = 32
"""Least length of a secret in bytes (RFC 7518, section 3.2)."""
_PURPOSE = b"tusd-py upload token 1"


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret. kid: its name in the header of tokens; None if it has none."""

    kid: str | None
    value: bytes


def new_secret() -> str:
    """A new secret: 48 random bytes, as 64 URL-safe characters."""
    return secrets.token_urlsafe(48)


def parse(text: str, source: str) -> tuple[Secret, ...]:
    """Parse the text of a file of secrets. Raises ValueError with `source` and the line, never with a secret."""
    found: list[Secret] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise ValueError(f"{source}, line {number}: give one secret a line, or KID SECRET")
        if not line.strip().replace("\t", " ").isprintable():
            # Of a file in UTF-16, or pasted: a secret that nobody sees is not the one that was meant.
            raise ValueError(
                f"{source}, line {number}: there is a character that cannot be seen; "
                "write the file anew, as UTF-8"
            )
        value = words[-1].encode()
        if len(value) < MINIMUM:
            raise ValueError(
                f"{source}, line {number}: the secret has {len(value)} bytes; "
                f"give at least {MINIMUM} (tusd-py keys new prints a good one)"
            )
        found.append(Secret(words[0] if len(words) == 2 else None, value))
    if not found:
        raise ValueError(f"{source} has no secret")
    if len({secret.kid for secret in found}) < len(found):
        raise ValueError(f"{source}: of several secrets each needs a name of its own")
    return tuple(found)


def read(path: Path, source: str) -> tuple[Secret, ...]:
    """Read the secrets from a file; blocking. Raises ValueError."""
    try:
        # utf-8-sig: editors on Windows write a byte order mark.
        return parse(path.read_text(encoding="utf-8-sig"), source)
    except (OSError, UnicodeDecodeError) as problem:
        raise ValueError(f"{source} cannot be read: {type(problem).__name__}") from None


class SharedSecrets:
    """`Keys` from shared secrets."""

    def __init__(self, found: Sequence[Secret]) -> None:
        self._by_kid = {secret.kid: secret.value for secret in found}

    async def candidates(self, kid: str | None, algorithm: str) -> Sequence[bytes | PyJWK]:
        if not algorithm.startswith("HS"):
            return ()
        if kid is None:
            return tuple(self._by_kid.values())
        # Tokens may have a `kid` although the only secret has none.
        key = self._by_kid.get(kid, self._by_kid.get(None))
        return () if key is None else (key,)

    async def start(self) -> None:
        return None

    async def stop(self) -> None:
        return None


def derived(found: Sequence[Secret]) -> tuple[Secret, ...]:
    """Derive a key for upload tokens from each secret, so that an access token is never valid as an upload token."""
    return tuple(
        Secret(fingerprint(key), key)
        for key in (hmac.digest(secret.value, _PURPOSE, "sha256") for secret in found)
    )


def fingerprint(key: bytes) -> str:
    """A name for a key that reveals nothing about it."""
    return hmac.digest(key, b"name", "sha256").hex()[:16]


def kept(path: Path) -> tuple[Secret, ...]:
    """Read the key for upload tokens from a file, created if missing; blocking. Raises ValueError, OSError."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(new_secret() + "\n")
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                # If several processes create one, the first wins.
                os.link(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
    return derived(read(path, str(path)))
