"""The address of a Redis as users write it: redis://, rediss:// or unix://.

Read here and not by redis-py, so that a mistake is told when settings are read, in a sentence, and
without the password. Nothing here connects to anything or imports redis-py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

EXPECTED = "give redis://HOST:PORT/DB, rediss://HOST:PORT/DB (TLS) or unix:///PATH?db=DB"

_ENCODED = 'a "#" in a password is written %23, a "?" is %3F, a "/" in a password is %2F'

_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OPTIONS = ("db", "username", "password")
_MAX_DATABASE = 2**31 - 1


@dataclass(frozen=True)
class Address:
    """Where a Redis is, and how to be let in. `str()` of it may be logged: it has no password."""

    path: str | None = None
    """Of a unix socket; None where `host` and `port` say where it is."""
    host: str = "localhost"
    port: int = 6379
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None
    """Certificates (PEM) to trust, instead of the system's."""
    certificate: str | None = None
    key: str | None = None
    verify: bool = True
    """Whether the certificate must be valid and for this host."""

    def __str__(self) -> str:
        database = f"?db={self.db}" if self.db else ""
        if self.path is not None:
            return f"unix://{quote(self.path)}{database}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"


def parse(url: str) -> Address:
    """The address that a URL gives. Raises ValueError: a sentence, without the password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"the host or the port is wrong; {EXPECTED}; {_ENCODED}") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError(EXPECTED)
    if parts.fragment:
        raise ValueError(_ENCODED)
    options = _options(parts)
    username = _decoded(parts.username) or options.get("username")
    password = _decoded(parts.password) or options.get("password")
    if parts.scheme == "unix":
        return Address(
            path=_socket_path(parts),
            db=_database(options.get("db", "0")),
            username=username,
            password=password,
        )
    if not parts.hostname:
        raise ValueError(f"the host is missing; {EXPECTED}")
    return Address(
        host=unquote(parts.hostname),
        port=6379 if port is None else port,
        db=_database(options.get("db") or parts.path.strip("/") or "0"),
        username=username,
        password=password,
        tls=parts.scheme == "rediss",
        ca_file=options.get("ssl_ca_certs"),
        certificate=options.get("ssl_certfile"),
        key=options.get("ssl_keyfile"),
        verify=_verify(options.get("ssl_cert_reqs", "required")),
    )


def _decoded(text: str | None) -> str | None:
    return unquote(text) if text else None


def _options(parts: SplitResult) -> dict[str, str]:
    known = list(_OPTIONS)
    if parts.scheme == "rediss":
        known += [*_TLS_FILES, "ssl_cert_reqs"]
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            # The name alone: what stands behind it may be part of a password with a "?".
            shown = name if re.fullmatch(r"[a-z_]{1,40}", name) else "that"
            raise ValueError(f'there is no option "{shown}"; there are {", ".join(known)}')
        options[name] = value
    return options


def _socket_path(parts: SplitResult) -> str:
    path = unquote(parts.path)
    if parts.hostname or not PurePosixPath(path).is_absolute() or "\0" in path:
        raise ValueError("give the whole path of a unix socket: unix:///run/redis.sock")
    return path


def _database(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > _MAX_DATABASE:
        raise ValueError(f"the database is a number, such as 0; {EXPECTED}")
    return int(text)


def _verify(text: str) -> bool:
    if text not in ("required", "none"):
        raise ValueError("ssl_cert_reqs is required or none")
    return text == "required"
