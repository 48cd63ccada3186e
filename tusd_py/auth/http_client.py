"""User agent and proxies for outgoing requests, to endpoints of hooks and to issuers of tokens."""

from __future__ import annotations

from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from tusd_py import __version__

USER_AGENT = f"tusd-py/{__version__}"


def without_credentials(url: URL) -> tuple[URL, aiohttp.BasicAuth | None]:
    """Split a URL into one without user name and password, and these (RFC 7617)."""
    if url.raw_user is None:
        return url, None
    auth = aiohttp.BasicAuth(
        unquote(url.raw_user), unquote(url.raw_password or ""), encoding="utf-8"
    )
    return url.with_user(None), auth


def proxy_for(url: URL) -> tuple[URL | None, aiohttp.BasicAuth | None]:
    """The proxy for a URL by the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), and its credentials.

    None for this machine: a proxy would connect to itself.
    """
    host = url.host or ""
    if host in ("localhost", "::1") or host.startswith("127.") or proxy_bypass(host):
        return None, None
    proxy = getproxies().get(url.scheme)
    return without_credentials(URL(proxy)) if proxy else (None, None)
