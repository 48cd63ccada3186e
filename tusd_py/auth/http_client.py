"""Requests that the server sends itself, to endpoints of hooks and to issuers of tokens: the proxy in between, and our name."""

from __future__ import annotations

from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from tusd_py import __version__

USER_AGENT = f"tusd-py/{__version__}"


def without_credentials(url: URL) -> tuple[URL, aiohttp.BasicAuth | None]:
    """A URL without the name and the password in it (RFC 7617), and these."""
    if url.raw_user is None:
        return url, None
    auth = aiohttp.BasicAuth(
        unquote(url.raw_user), unquote(url.raw_password or ""), encoding="utf-8"
    )
    return url.with_user(None), auth


def proxy_for(url: URL) -> tuple[URL | None, aiohttp.BasicAuth | None]:
    """The proxy that the environment names for a URL (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), and the credentials for it.

    None for this machine, which a proxy would take for itself.
    """
    host = url.host or ""
    if host in ("localhost", "::1") or host.startswith("127.") or proxy_bypass(host):
        return None, None
    proxy = getproxies().get(url.scheme)
    return without_credentials(URL(proxy)) if proxy else (None, None)
