"""What the HTTP parser leaves unchecked of a request's head: transfer codings, `Host` and the target's form (RFC 9112).

Pure functions. A refusal is returned, not raised, as the caller is in the middle of the parser's callbacks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple


class Refusal(NamedTuple):
    """A response that is sent without asking the application."""

    status: int
    code: str
    message: str


BAD_REQUEST = Refusal(400, "ERR_BAD_REQUEST", "the request is not valid HTTP")

OLD_VERSIONS = frozenset({"0.9", "1.0"})
"""Versions of HTTP that know no transfer codings, no interim responses and no connections that stay open."""

# uri-host [ ":" port ] of RFC 3986, without what only other schemes have.
_HOST = re.compile(
    rb"(?:\[[0-9A-Za-z:.%_~-]{1,255}\]|[A-Za-z0-9._~%!$&'()*+,;=-]{0,255})(?::[0-9]{0,5})?"
)
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+[ \t]*(?:;|$)")
_SCHEME = re.compile(rb"https?://", re.IGNORECASE)


def check_codings(values: Sequence[bytes], http_version: str) -> Refusal | None:
    """What is wrong with the values of `Transfer-Encoding`, if there are any (RFC 9112, sections 6.1 and 6.3).

    Only `chunked` is understood; another coding would be stored as it came.
    """
    if not values:
        return None
    if http_version in OLD_VERSIONS:
        return Refusal(400, "ERR_BAD_REQUEST", "HTTP/1.0 has no Transfer-Encoding")
    codings = [coding.strip(b" \t").lower() for coding in b",".join(values).split(b",")]
    if codings == [b"chunked"]:
        return None
    if b"chunked" in codings[:-1]:
        return Refusal(400, "ERR_BAD_REQUEST", "chunked must be the last transfer coding, once")
    if not all(_TOKEN.match(coding) for coding in codings):
        return Refusal(400, "ERR_BAD_REQUEST", "the Transfer-Encoding header is malformed")
    return Refusal(
        501, "ERR_UNSUPPORTED_TRANSFER_CODING", "chunked is the only transfer coding known here"
    )


def check_host(values: Sequence[bytes], http_version: str) -> Refusal | None:
    """What is wrong with the values of `Host` (RFC 9112, section 3.2): exactly one, which may be empty; none for HTTP/1.0."""
    if len(values) == 1:
        if _is_host(values[0]):
            return None
        return Refusal(400, "ERR_BAD_REQUEST", "the Host header is not a host name and a port")
    if not values and http_version == "1.0":
        return None
    return Refusal(400, "ERR_BAD_REQUEST", "the request needs exactly one Host header")


@lru_cache(maxsize=64)
def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value) is not None


def authority_of(target: bytes) -> bytes | None:
    """The host (and port) that a target in absolute form names, "" if it is in another form; None for one that is malformed.

    Such a host counts instead of that in `Host` (RFC 9112, section 3.2.2).
    """
    if target.startswith(b"/") or target == b"*":
        return b""
    scheme = _SCHEME.match(target)
    if scheme is None:
        return None
    authority = re.split(rb"[/?#]", target[scheme.end() :], maxsplit=1)[0]
    # Names of users have no place in a request (RFC 9110, section 4.2.4); they contain an "@", which no host does.
    return authority if authority.strip(b":") and _is_host(authority) else None
