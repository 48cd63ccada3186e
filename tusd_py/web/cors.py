"""Cross-origin resource sharing: the header fields that let browsers of other sites upload here.

It only decides which fields a response carries, not who may do what. The fields are put together once, at start, so that a
request costs one match of its `Origin`.
"""

from __future__ import annotations

import re

from tusd_py.protocol.headers import RawHeaders

ALLOWED_METHODS = "POST, PUT, HEAD, PATCH, OPTIONS, GET, DELETE"

# What clients of tus 1.0.0 and of the IETF's protocol send, and what browsers, proxies and libraries add.
ALLOWED_HEADERS = (
    "Authorization, Origin, X-Requested-With, X-Request-ID, X-HTTP-Method-Override, Content-Type, "
    "Content-Length, Content-Disposition, Content-Digest, Repr-Digest, Want-Repr-Digest, Accept, "
    "Range, If-Range, If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since, "
    "Upload-Length, Upload-Offset, Upload-Metadata, Upload-Defer-Length, Upload-Concat, "
    "Upload-Checksum, Upload-Incomplete, Upload-Complete, Upload-Draft-Interop-Version, "
    "Upload-Force, Upload-Token, Tus-Resumable"
)

# A client that cannot read one of these cannot resume, so everything that this server ever answers with is listed.
EXPOSED_HEADERS = (
    "Upload-Offset, Location, Upload-Length, Tus-Version, Tus-Resumable, Tus-Max-Size, "
    "Tus-Extension, Tus-Checksum-Algorithm, Upload-Metadata, Upload-Defer-Length, Upload-Concat, "
    "Upload-Expires, Upload-Complete, Upload-Incomplete, Upload-Limit, "
    "Upload-Draft-Interop-Version, Upload-Token, Upload-Token-Expires, Retry-After, "
    "Content-Length, Content-Disposition, Content-Range, Accept-Ranges, Accept-Patch, ETag, "
    "Last-Modified, Date, Allow, Repr-Digest, WWW-Authenticate, X-Request-ID, "
    "Access-Control-Allow-Origin"
)

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# An origin is echoed into the response, so nothing but visible ASCII passes, and no more of it than a host name needs.
_ORIGIN = re.compile(rb"[\x21-\x7e]{1,512}")
_ANY_ORIGINS = ("null", "http://a.invalid", "https://a.invalid:1")
"""Origins that an expression matches which matches all of them."""


class CORS:
    """What the operator allows to pages of other origins (Fetch Standard, "CORS protocol").

    allow_origin: regular expression that the whole `Origin` must match. allow_methods, allow_headers, expose_headers: comma
    lists of names besides the usual ones. max_age: seconds, as digits, for which a browser may keep a preflight's answer.
    allow_private_network: whether pages of public addresses may reach this server at a private one (Private Network Access).

    Raises ValueError, with a sentence that names what is wrong, for an expression that does not compile, a name that no header
    or method can have, and a max_age that is not a number.
    """

    def __init__(
        self,
        *,
        allow_origin: str,
        allow_credentials: bool,
        allow_private_network: bool = False,
        allow_methods: str,
        allow_headers: str,
        expose_headers: str,
        max_age: str,
    ) -> None:
        try:
            self._pattern = re.compile(allow_origin)
        except re.error as error:
            raise ValueError(
                f"the allowed origin {allow_origin!r} is not a regular expression: {error}"
            ) from None
        if not (max_age.isascii() and max_age.isdigit()):
            raise ValueError(f"the maximum age {max_age!r} is not a number of seconds")
        exposed = _joined(EXPOSED_HEADERS, expose_headers)
        both: RawHeaders = [(b"vary", b"Origin")]
        self._private_network = allow_private_network
        if allow_credentials:
            both.append((b"access-control-allow-credentials", b"true"))
        self._actual: RawHeaders = [*both, (b"access-control-expose-headers", exposed)]
        # Where nobody knows whose page it is: without credentials, and only where every origin may read everything anyway.
        self._of_unknown: RawHeaders = []
        if all(self._pattern.fullmatch(origin) for origin in _ANY_ORIGINS):
            self._of_unknown = [
                (b"access-control-allow-origin", b"*"),
                (b"access-control-expose-headers", exposed),
            ]
        # A page may also ask with OPTIONS itself, what the server can, and wants to read the answer.
        self._preflight: RawHeaders = [
            *self._actual,
            (b"access-control-allow-methods", _joined(ALLOWED_METHODS, allow_methods)),
            (b"access-control-allow-headers", _joined(ALLOWED_HEADERS, allow_headers)),
            (b"access-control-max-age", max_age.encode()),
        ]

    def headers_for(
        self, origin: bytes | None, *, preflight: bool, private_network: bool = False
    ) -> RawHeaders:
        """The fields of a response to a request from `origin` (the value of its `Origin`), none where it is not allowed.

        The origin is named, never `*`: with credentials a browser takes nothing else, and an operator who narrows the
        expression later changes nothing but that. private_network: whether the preflight asks for access from a public address
        to a private one.
        """
        if origin is None or _ORIGIN.fullmatch(origin) is None:
            return []
        if self._pattern.fullmatch(origin.decode("ascii")) is None:
            return []
        allowed = [
            (b"access-control-allow-origin", origin),
            *(self._preflight if preflight else self._actual),
        ]
        if preflight and private_network and self._private_network:
            allowed.append((b"access-control-allow-private-network", b"true"))
        return allowed

    def headers_for_unknown(self) -> RawHeaders:
        """The fields of a response to a request that was refused before its `Origin` was read."""
        return self._of_unknown


def _joined(usual: str, additional: str) -> bytes:
    """The names of two comma lists, each once."""
    names: dict[str, str] = {}
    for name in (part.strip() for part in f"{usual},{additional}".split(",")):
        if name and _TOKEN.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not the name of a header or a method")
        names.setdefault(name.lower(), name)
    return ", ".join(filter(None, names.values())).encode("ascii")
