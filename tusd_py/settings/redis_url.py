"""URLs of Redis: redis://, rediss:// (TLS), unix://, and redis+sentinel:// to ask Sentinels for the primary.

Parsed here instead of by redis-py, so that a mistake is reported when settings are loaded, in a sentence without the password.
Does not import redis-py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TypedDict
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

EXPECTED = (
    "give redis://HOST:PORT/DB, rediss://HOST:PORT/DB (TLS), unix:///PATH?db=DB or "
    "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB"
)
_EXPECTED_SENTINELS = (
    "give redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB, or rediss+sentinel:// for TLS"
)

_ENCODED = 'a "#" in a password is written %23, a "?" is %3F, a "/" in a password is %2F'

_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OPTIONS = ("db", "username", "password")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_SENTINEL_PORT = 26379
_MAX_DATABASE = 2**31 - 1


class TlsOptions(TypedDict, total=False):
    """redis-py's options for TLS."""

    ssl: bool
    ssl_ca_certs: str | None
    ssl_certfile: str | None
    ssl_keyfile: str | None
    ssl_cert_reqs: str
    ssl_check_hostname: bool


@dataclass(frozen=True)
class Address:
    """Address and credentials of a Redis. `str()` of it has no password and may be logged."""

    path: str | None = None
    """Path of the unix socket; None for TCP."""
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
    sentinels: tuple[tuple[str, int], ...] = ()
    """Hosts and ports of Sentinels, which name the primary; `host` and `port` are unused then."""
    service: str = ""
    """Sentinels' name for the primary and its replicas."""
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)

    def tls_options(self) -> TlsOptions:
        """Return redis-py's options for TLS; empty without TLS."""
        if not self.tls:
            return {}
        return TlsOptions(
            ssl=True,
            ssl_ca_certs=self.ca_file,
            ssl_certfile=self.certificate,
            ssl_keyfile=self.key,
            ssl_cert_reqs="required" if self.verify else "none",
            ssl_check_hostname=self.verify,
        )

    def __str__(self) -> str:
        database = f"?db={self.db}" if self.db else ""
        if self.sentinels:
            scheme = "rediss" if self.tls else "redis"
            hosts = ",".join(f"{_bracketed(host)}:{port}" for host, port in self.sentinels)
            return f"{scheme}+sentinel://{hosts}/{quote(self.service)}/{self.db}"
        if self.path is not None:
            return f"unix://{quote(self.path)}{database}"
        return (
            f"{'rediss' if self.tls else 'redis'}://{_bracketed(self.host)}:{self.port}/{self.db}"
        )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse(url: str) -> Address:
    """Parse a URL. Raises ValueError with a sentence that does not contain the password."""
    if re.match(r"rediss?\+sentinel:", url, re.IGNORECASE):
        return _parse_sentinels(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"the host or the port is wrong; {EXPECTED}; {_ENCODED}") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError(EXPECTED)
    options = _options(parts)
    common = _common(options, parts.username, parts.password)
    if parts.scheme == "unix":
        return replace(common, path=_socket_path(parts), db=_database(options.get("db", "0")))
    if not parts.hostname:
        raise ValueError(f"the host is missing; {EXPECTED}")
    return replace(
        common,
        host=unquote(parts.hostname),
        port=6379 if port is None else port,
        db=_database(options.get("db") or parts.path.strip("/") or "0"),
        tls=parts.scheme == "rediss",
    )


def _parse_sentinels(url: str) -> Address:
    """Parse a URL that names Sentinels. Raises ValueError."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"the URL is wrong; {_EXPECTED_SENTINELS}; {_ENCODED}") from None
    options = _options(parts, more=_SENTINEL_OPTIONS)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    service, _, database = parts.path.lstrip("/").partition("/")
    if not service:
        raise ValueError(f"the name of the service is missing; {_EXPECTED_SENTINELS}")
    return replace(
        _common(options, username, password),
        db=_database(options.get("db") or database.strip("/") or "0"),
        tls=parts.scheme == "rediss+sentinel",
        sentinels=tuple(_sentinel(host) for host in hosts.split(",")),
        service=unquote(service),
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def _common(options: Mapping[str, str], username: str | None, password: str | None) -> Address:
    """Return an address with what all kinds of URLs may have. Raises ValueError."""
    return Address(
        username=unquote(username) if username else options.get("username"),
        password=unquote(password) if password else options.get("password"),
        ca_file=options.get("ssl_ca_certs"),
        certificate=options.get("ssl_certfile"),
        key=options.get("ssl_keyfile"),
        verify=_verify(options.get("ssl_cert_reqs", "required")),
    )


def _sentinel(text: str) -> tuple[str, int]:
    """Parse the host and port of one Sentinel. Raises ValueError."""
    try:
        # Parsed as the host of a URL of its own.
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        raise ValueError(f"a host or a port is wrong; {_EXPECTED_SENTINELS}; {_ENCODED}") from None
    if not parts.hostname or parts.path:
        raise ValueError(f"a host is missing; {_EXPECTED_SENTINELS}")
    return unquote(parts.hostname), _SENTINEL_PORT if port is None else port


def _options(parts: SplitResult, more: tuple[str, ...] = ()) -> dict[str, str]:
    if parts.fragment:
        raise ValueError(_ENCODED)
    known = [*_OPTIONS, *more]
    if parts.scheme.startswith("rediss"):
        known += [*_TLS_FILES, "ssl_cert_reqs"]
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            # Only the name is shown: its value may be part of a password that contains a "?".
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
