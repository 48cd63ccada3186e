"""Decide who an operator is, and which requests are a page's of another site.

Every request must name a host under which the page is served, or a foreign name that leads here could read it in a browser
(DNS rebinding). A request of a page must come from the same origin, and one that changes anything must have a header field that
only scripts of the same origin can send. An operator is who has a session from a one-time link, a token with the right to
everything, or a name that a trusted proxy sends. Not for: what operators may see.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.requests import Request

from tusd_py.auth.principal import Right
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.settings import types
from tusd_py.settings.model import Settings
from tusd_py.web.admin import models
from tusd_py.web.admin.links import Links
from tusd_py.web.proxy_headers import Proxies

if TYPE_CHECKING:
    from tusd_py.auth.authenticator import Authenticator

COOKIE = "tusd_admin"
MARK = "x-tusd-admin"
"""Header field of every request that changes anything; other sites' pages cannot send it without being asked first."""
SCOPE_KEY = "tusd_py.operator"
"""Where an application that the page is mounted in names the operator whom it has authenticated, in the ASGI scope."""
SESSION_SECONDS = 12 * 3600.0
_MOST_SESSIONS = 1000
_LONGEST_NAME = 256
_COOKIE_BYTES = 32
_is_cookie = re.compile(r"[A-Za-z0-9_-]{43}").fullmatch
"""Matches the value of a cookie of ours, the bytes of `_COOKIE_BYTES` in base64url."""


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator. name: for the log."""

    name: str
    via: models.Via


@dataclass(frozen=True, slots=True)
class _Session:
    """A session. authorization: the token that it was made with, which is verified with every request; empty for a link's."""

    operator: Operator
    until: float
    authorization: str = ""


class Access:
    """Admits operators. is_mounted: whether the page is part of another application, and not served on an address of its own.

    Attributes:
        links: Accepts one-time links; None until the server has started.
        authenticator: Verifies tokens; None without access tokens.
    """

    def __init__(self, settings: Settings, proxies: Proxies, *, is_mounted: bool) -> None:
        self.links: Links | None = None
        self.authenticator: Authenticator | None = None
        self._settings = settings
        self._proxies = proxies
        self._is_mounted = is_mounted
        self._user_header = settings.admin_user_header.lower()
        self._hosts = {name.lower() for name in settings.admin_hosts}
        self._address = "" if is_mounted else settings.admin
        self._sessions: dict[str, _Session] = {}

    # Other sites' pages

    def check_host(self, request: Request) -> None:
        """Raise a 421 for a request to a name under which the page is not served."""
        named = request.headers.getlist("host")
        if len(named) != 1 or not self._is_own(_host_of(named[0])):
            raise errors.foreign_host()

    def check_origin(self, request: Request) -> None:
        """Raise a 403 for a request that a page of another origin sent."""
        headers = request.headers
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise errors.foreign_origin()
        origin = headers.get("origin")
        if origin is not None and not self._is_same(origin, headers.get("host", "")):
            raise errors.foreign_origin()
        if request.method not in ("GET", "HEAD") and MARK not in headers:
            raise errors.foreign_origin()

    def _is_own(self, host: str) -> bool:
        served = self._address.rpartition(":")[0].strip("[]").lower()
        if host in self._hosts or (self._is_near and types.is_loopback(host)):
            return True
        address, own = _ip(host), _ip(served)
        if address is None:
            return host == served
        # An address in a URL leads there; unlike a name it cannot be made to lead elsewhere (DNS rebinding).
        return not self._is_near and own is not None and (own.is_unspecified or own == address)

    @property
    def _is_near(self) -> bool:
        return self._is_mounted or types.is_near(self._address)

    def _is_same(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
            name, port = parts.hostname or "", parts.port
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or not name:
            return False
        default = 443 if parts.scheme == "https" else 80
        told_name, told_port = _split(host)
        if name == told_name and (port or default) == (told_port or default):
            return True
        # A proxy may send another Host than the browser's.
        return name in self._hosts

    # Operators

    async def operator(self, request: Request) -> Operator:
        """Return the operator who sends a request. Raises a 401 without credentials, a 403 for a client that is no operator."""
        authorization = request.headers.get("authorization", "")
        if self.authenticator is not None and authorization.lower().startswith("bearer"):
            return await self.of_token(authorization)
        ended = False
        if cookie := _cookie_of(request):
            session = self._session(cookie)
            if session is not None:
                return await self._still(session)
            ended = True
        found = self._of_proxy(request) or self._of_application(request)
        if found is None:
            raise errors.session_ended() if ended else errors.no_operator()
        return found

    async def of_token(self, authorization: str) -> Operator:
        """Return the operator whose token this is. Raises ProtocolError."""
        if self.authenticator is None:
            raise errors.no_operator()
        principal = await self.authenticator.authenticate({"authorization": authorization})
        if Right.ADMIN not in principal.rights:
            raise errors.insufficient_scope(self.authenticator.access_policy.scopes[Right.ADMIN])
        return Operator(principal.owner, "token")

    async def _still(self, session: _Session) -> Operator:
        """The operator of a session, whose token may have expired or been revoked."""
        if session.authorization:
            try:
                return await self.of_token(session.authorization)
            except ProtocolError as problem:
                if problem.status == 401:
                    raise errors.session_ended() from None
                raise
        return session.operator

    def _of_proxy(self, request: Request) -> Operator | None:
        if not self._user_header or not self._proxies.trusts_peer(request.scope):
            return None
        names = request.headers.getlist(self._user_header)
        name = names[0].strip() if len(names) == 1 else ""
        # Several would be the client's and the proxy's.
        if not name or len(name) > _LONGEST_NAME or not name.isprintable():
            return None
        return Operator(name, "header")

    def _of_application(self, request: Request) -> Operator | None:
        name = request.scope.get(SCOPE_KEY) if self._is_mounted else None
        return Operator(name, "application") if isinstance(name, str) and name else None

    # Sessions

    async def open_session(self, request: Request, code: str | None) -> tuple[Operator, str]:
        """Make a session of a link's code or, without one, of a token; return whose it is, and the cookie.

        Raises ProtocolError.
        """
        authorization = ""
        if code is not None:
            operator = Operator(self._redeem(request, code), "link")
        else:
            authorization = request.headers.get("authorization", "")
            operator = await self.of_token(authorization)
        cookie = secrets.token_urlsafe(_COOKIE_BYTES)
        now = time.time()
        self._sessions = {key: each for key, each in self._sessions.items() if each.until > now}
        while len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[_digest(cookie)] = _Session(operator, now + SESSION_SECONDS, authorization)
        return operator, cookie

    def close_session(self, request: Request) -> None:
        """End the session of a request."""
        if cookie := _cookie_of(request):
            self._sessions.pop(_digest(cookie), None)

    def _session(self, cookie: str) -> _Session | None:
        session = self._sessions.get(_digest(cookie))
        return session if session is not None and session.until > time.time() else None

    def _redeem(self, request: Request, code: str) -> str:
        """The user who made a link. Raises a 403 where others could listen to the session."""
        client = request.client
        is_near = self._is_near and not self._is_mounted
        if self._is_mounted:
            address = _ip(client.host) if client else None
            is_near = request.url.scheme == "https" or (address is not None and address.is_loopback)
        if self.links is None or not is_near:
            raise errors.bad_link()
        return self.links.redeem(code)


def _cookie_of(request: Request) -> str | None:
    """The cookie of a session, whether there is one or not; None without a cookie that could be of ours.

    Not read by `request.cookies`, which takes quadratic time for quoted values before Python 3.13 (CVE-2024-7592).
    """
    for field in request.headers.getlist("cookie"):
        for pair in field.split(";"):
            name, _, value = pair.strip().partition("=")
            # Browsers send the cookie of the longest path first.
            if name == COOKIE and _is_cookie(value):
                return value
    return None


def _digest(cookie: str) -> str:
    # A look-up of the value itself could be timed.
    return hashlib.sha256(cookie.encode()).hexdigest()


def _split(host: str) -> tuple[str, int | None]:
    """The name, without brackets, and the port of a Host field; an empty name for nonsense."""
    try:
        parts = urlsplit(f"//{host}")
        plain = not (parts.path or parts.query or parts.fragment or parts.username)
        return ((parts.hostname or "") if plain else "", parts.port)
    except ValueError:
        return "", None


def _host_of(host: str) -> str:
    return _split(host)[0].removesuffix(".")


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
