"""One-time links to the operators' page, which only a user of this machine who may read the state directory can make.

The server keeps a key in a file of the state directory, new at each start. `tusd-py dashboard` reads it and makes a code,
signed with it, that names the user and is good for some minutes. The page exchanges it once for a session.
"""

from __future__ import annotations

import base64
import binascii
import getpass
import hashlib
import hmac
import json
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tusd_py.protocol import errors
from tusd_py.storage.file.files import write_new

CODE_SECONDS = 300.0
_FILE = "admin.json"
_LONGEST_USER = 64


@dataclass(frozen=True, slots=True)
class Door:
    """What the file says. url: of the page, empty if only the application that it is mounted in knows it."""

    url: str
    key: bytes


class Links:
    """Accepts the codes of links. key: what they are signed with."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._used: dict[str, float] = {}

    def redeem(self, code: str) -> str:
        """Return the user who made a code, which counts no longer. Raises a 403."""
        now = time.time()
        self._used = {each: until for each, until in self._used.items() if until > now}
        try:
            user, until, nonce = _read(code, self._key)
        except (ValueError, TypeError, binascii.Error):
            raise errors.bad_link() from None
        if not now < until <= now + CODE_SECONDS + 60 or nonce in self._used:
            raise errors.bad_link()
        self._used[nonce] = until
        return user


def this_user() -> str:
    """Return the name of the user who runs this process; its number where it has no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid())


def make_code(key: bytes, user: str) -> str:
    """Return a code for a link."""
    payload = json.dumps([user[:_LONGEST_USER], time.time() + CODE_SECONDS, secrets.token_hex(8)])
    return f"{_encoded(payload.encode())}.{_encoded(_signature(key, payload.encode()))}"


def _read(code: str, key: bytes) -> tuple[str, float, str]:
    """Raises ValueError, TypeError for anything that is no code with this signature."""
    payload, dot, signature = code.partition(".")
    raw = _decoded(payload)
    if not dot or not hmac.compare_digest(_signature(key, raw), _decoded(signature)):
        raise ValueError("the signature is wrong")
    user, until, nonce = json.loads(raw)
    return str(user), float(until), str(nonce)


def _signature(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, b"tusd-py link 1\0" + payload, hashlib.sha256)


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def keep(state_dir: Path, url: str) -> bytes:
    """Write the file with a new key, which is returned. Raises OSError."""
    key = secrets.token_bytes(32)
    fresh = state_dir / f"{_FILE}.new"
    fresh.unlink(missing_ok=True)
    # Never readable by others, not even for a moment.
    write_new(str(fresh), json.dumps({"url": url, "key": key.hex()}).encode(), perms=0o600)
    os.replace(fresh, state_dir / _FILE)
    return key


def find(state_dir: Path) -> Door | None:
    """Return what the running server wrote; None if it serves no operators. Raises OSError."""
    try:
        document = json.loads((state_dir / _FILE).read_text("utf-8"))
        return Door(str(document["url"]), bytes.fromhex(document["key"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def forget(state_dir: Path) -> None:
    """Remove the file when the server ends."""
    with suppress(OSError):
        (state_dir / _FILE).unlink()
