"""Public keys from a key set (RFC 7517) at a URL or in a file, for RS256, PS256, ES256, EdDSA and the like.

A key set is refreshed every few minutes, and used for a day while its source is unavailable. A token with an unknown `kid`
triggers a refresh as well, but not more often than every few seconds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import aiohttp
from jwt import PyJWK
from jwt.exceptions import PyJWKError, PyJWTError
from yarl import URL

from tusd_py import logs
from tusd_py.auth.http_client import USER_AGENT, proxy_for
from tusd_py.auth.keys import KeysUnavailable
from tusd_py.background import cancel, spawn

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 300.0
_MAX_AGE_SECONDS = 86_400.0
"""Age at which a key set is refreshed, and at which it is not used any more."""
_PAUSE_SECONDS = 10.0
_RETRY_SECONDS = 1.0
"""Least time between two refreshes for unknown keys, and between two while there are no keys at all."""
_TIMEOUT_SECONDS = 5.0
"""For one refresh, redirects included."""
_MAX_BYTES = 512 * 1024
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FIELDS = {
    "User-Agent": USER_AGENT,
    "Accept": "application/jwk-set+json, application/json",
    # No compression: a small response could decompress to a large one.
    "Accept-Encoding": "identity",
}
_MAX_CANDIDATES = 8

ALGORITHMS: Mapping[str, tuple[str, str]] = {
    "RS256": ("RSA", ""),
    "RS384": ("RSA", ""),
    "RS512": ("RSA", ""),
    "PS256": ("RSA", ""),
    "PS384": ("RSA", ""),
    "PS512": ("RSA", ""),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""Type of key and curve for each algorithm."""


class KeySet:
    """The keys of one document, by `kid` and algorithm. Raises ValueError if it is no key set.

    Ignores keys that are not for verifying signatures with `algorithms`, such as secret ones.
    """

    def __init__(self, document: bytes, algorithms: Sequence[str]) -> None:
        try:
            content: object = json.loads(document)
        except RecursionError:
            raise ValueError("it is nested too deep") from None
        keys = content.get("keys") if isinstance(content, dict) else None
        if not isinstance(keys, list):
            raise ValueError("it has no list of keys")
        self._keys: list[tuple[str | None, str, PyJWK]] = []
        for key in keys:
            if isinstance(key, dict):
                self._add(cast("dict[str, object]", key), algorithms)

    def __len__(self) -> int:
        return len(self._keys)

    def _add(self, key: dict[str, object], algorithms: Sequence[str]) -> None:
        if key.get("use", "sig") != "sig":
            return
        kid = key.get("kid")
        for algorithm in algorithms:
            kind, curve = ALGORITHMS[algorithm]
            if key.get("kty") != kind or (curve and key.get("crv") != curve):
                continue
            if key.get("alg", algorithm) != algorithm:
                continue
            # Ignore a malformed key, and keep the others.
            with suppress(PyJWKError, PyJWTError, ValueError, TypeError, KeyError):
                usable = PyJWK(key, algorithm)
                self._keys.append((kid if isinstance(kid, str) else None, algorithm, usable))

    def find(self, kid: str | None, algorithm: str) -> list[PyJWK]:
        """The keys that may have signed a token; a key without a `kid` always may."""
        found = [
            key
            for name, own, key in self._keys
            if own == algorithm and (kid is None or name is None or name == kid)
        ]
        return found[:_MAX_CANDIDATES]


class Jwks:
    """`Keys` from a key set that is kept up to date. source: an http(s) URL or the path of a file."""

    def __init__(self, source: str, algorithms: Sequence[str]) -> None:
        self._source = source
        self._algorithms = tuple(algorithms)
        self._keys: KeySet | None = None
        self._loaded = -_MAX_AGE_SECONDS
        self._tried = -_MAX_AGE_SECONDS
        self._loading = asyncio.Lock()
        self._background: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._refresh(_RETRY_SECONDS)

    async def stop(self) -> None:
        await cancel(self._background)

    async def candidates(self, kid: str | None, algorithm: str) -> Sequence[bytes | PyJWK]:
        now = time.monotonic()
        if self._keys is None or now - self._loaded > _MAX_AGE_SECONDS:
            await self._refresh(_RETRY_SECONDS)
        elif now - self._loaded > _REFRESH_SECONDS and (
            self._background is None or self._background.done()
        ):
            self._background = spawn(self._refresh(_PAUSE_SECONDS), "jwks")
        keys = self._keys
        if keys is None or time.monotonic() - self._loaded > _MAX_AGE_SECONDS:
            raise KeysUnavailable(f"no keys from {self._source}")
        found = keys.find(kid, algorithm)
        if not found:
            await self._refresh(_PAUSE_SECONDS)
            found = (self._keys or keys).find(kid, algorithm)
        return found

    async def _refresh(self, pause: float) -> None:
        """Read the source, unless that was tried less than `pause` seconds ago. Failures are logged."""
        async with self._loading:
            if time.monotonic() - self._tried < pause:
                return
            self._tried = time.monotonic()
            try:
                keys = KeySet(await self._read(), self._algorithms)
                if not len(keys):
                    raise ValueError(f"it has no key for {', '.join(self._algorithms)}")
            except (OSError, ValueError, aiohttp.ClientError, TimeoutError) as problem:
                logs.event(
                    logger,
                    logging.WARNING,
                    "jwks",
                    message=f"The key set {self._source} cannot be read: "
                    f"{str(problem) or type(problem).__name__}",
                )
                return
            self._keys, self._loaded = keys, time.monotonic()

    async def _read(self) -> bytes:
        if not self._source.startswith(("http://", "https://")):
            return await asyncio.to_thread(Path(self._source).read_bytes)
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None),
            headers=_FIELDS,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        ) as session:
            return await asyncio.wait_for(_fetch(session, URL(self._source)), _TIMEOUT_SECONDS)


async def _fetch(session: aiohttp.ClientSession, url: URL) -> bytes:
    """Fetch a document, through the proxy of the environment. Raises ValueError for other responses than 200."""
    for _ in range(_MAX_REDIRECTS + 1):
        proxy, proxy_auth = proxy_for(url)
        async with session.get(
            url, allow_redirects=False, proxy=proxy, proxy_auth=proxy_auth
        ) as response:
            if response.status == 200:
                return await _document(response)
            if response.status not in _REDIRECTS:
                raise ValueError(f"it was answered with {response.status}")
            url = _redirected(url, response.headers.get("Location", ""))
    raise ValueError(f"it was redirected more than {_MAX_REDIRECTS} times")


async def _document(response: aiohttp.ClientResponse) -> bytes:
    document = b""
    while more := await response.content.read(_MAX_BYTES + 1 - len(document)):
        document += more
        if len(document) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
    return document


def _redirected(url: URL, location: str) -> URL:
    """The target of a redirect. Raises ValueError unless it is an HTTPS URL, or an HTTP URL redirected from HTTP."""
    if not location:
        raise ValueError("it was redirected nowhere")
    target = url.join(URL(location))
    if target.scheme not in ("http", "https") or target.raw_user is not None or not target.host:
        raise ValueError("it was redirected to what is no plain HTTP URL")
    if url.scheme == "https" and target.scheme != "https":
        raise ValueError("it was redirected from HTTPS to HTTP")
    return target
