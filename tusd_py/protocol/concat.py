"""Parse `Upload-Concat`, and map its URLs to upload ids (tus 1.0.0, "Concatenation")."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from tusd_py.protocol import errors

_FINAL = "final;"
_MAX_CANDIDATES = 8
_AUTHORITY = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]{0,30}:)?//[^/]*")


@dataclass(frozen=True, slots=True)
class Partial:
    """The upload will be part of a final upload."""


@dataclass(frozen=True, slots=True)
class Final:
    """The upload is the concatenation of `parts`: URLs as the client wrote them, in order, perhaps repeated."""

    parts: tuple[str, ...]


def parse(value: str, *, max_parts: int) -> Partial | Final:
    """Parse `partial`, or `final;<url> <url>…` with at most `max_parts` URLs.

    Raises:
        ProtocolError: 400 for anything else.
    """
    if value == "partial":
        return Partial()
    if not value.startswith(_FINAL):
        raise errors.invalid_concat("it must be `partial` or `final;` and a list of URLs")
    if not (value.isascii() and value.isprintable()):
        raise errors.invalid_concat("URLs are printable ASCII; percent-encode everything else")
    parts = tuple(part for part in value[len(_FINAL) :].split(" ") if part)
    if not parts:
        raise errors.invalid_concat("a final upload needs at least one part")
    if len(parts) > max_parts:
        raise errors.invalid_concat(f"a final upload has at most {max_parts} parts")
    return Final(parts)


def upload_ids_of(url: str, base_paths: Sequence[str]) -> tuple[str, ...]:
    """The upload ids that `url` may refer to, the likeliest first.

    Scheme, host and port are not compared, as a server may have several names; neither is anything before the base path, as
    proxies add prefixes. An id may contain slashes, so a base path that occurs several times leaves several candidates. The
    caller checks whether one of them is an upload.

    Args:
        url: Absolute, a path, or relative to the first of `base_paths`.
        base_paths: Paths of collections, each with a slash at the end.

    Raises:
        ProtocolError: 404 for a URL that cannot be an upload of this server.
    """
    path = _path_of(url)
    if "%" in path:
        try:
            path = unquote_to_bytes(path).decode("utf-8")
        except ValueError:
            raise errors.not_found() from None
    if not path.startswith("/"):
        path = base_paths[0] + path.removeprefix("./")
    path = path.rstrip("/")
    found: dict[str, None] = {}
    for base_path in base_paths:
        if path.startswith(base_path):
            found[path[len(base_path) :]] = None
    for base_path in base_paths:
        # From the end, since a prefix is more often long than an id.
        at = path.rfind(base_path)
        while at >= 0 and len(found) < _MAX_CANDIDATES:
            found[path[at + len(base_path) :]] = None
            at = path.rfind(base_path, 0, at + len(base_path) - 1)
    found.pop("", None)
    if not found:
        raise errors.not_found()
    return tuple(found)


def _path_of(url: str) -> str:
    """The path of a URL reference (RFC 3986, section 4.1), undecoded; relative if the reference is."""
    for separator in "#?":
        url = url.partition(separator)[0]
    authority = _AUTHORITY.match(url)
    return url[authority.end() :] or "/" if authority is not None else url
