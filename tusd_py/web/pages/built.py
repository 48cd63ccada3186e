"""The pages as they were built from `frontend/pages`: HTML to fill in, and scripts and styles with their compressed forms.

They are read once, when a server starts; all of them together are a few hundred kilobytes.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tusd_py.protocol.headers import RawHeaders

ASSETS = "/_pages/"
"""Where scripts and styles are; `frontend/building/build-pages.mjs` writes it into the pages."""

BUILT = Path(__file__).parent / "built"
HOW_TO_BUILD = "The pages of this server are not built. In a checkout, `make pages` builds them; wheels contain them."

_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
_SETTINGS = "%SETTINGS%"

SAFE: RawHeaders = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
"""Fields of every page and of its parts."""

_FOREVER = b"public, max-age=31536000, immutable"
_REVALIDATED = b"no-cache"


@dataclass(frozen=True, slots=True)
class File:
    """One file to send.

    encodings: its compressed forms by content coding, the preferred one first. etag: of the plain form, without quotes.
    headers: fields besides those of the content.
    """

    body: bytes
    media_type: str
    etag: str
    headers: RawHeaders
    encodings: Mapping[str, bytes] = field(default_factory=dict)


class BuiltPages:
    """What `frontend/build.py` left in a directory."""

    def __init__(self, directory: Path = BUILT) -> None:
        """Raises OSError if the directory cannot be read."""
        self.assets = {
            file.name: _asset(file) for file in directory.iterdir() if file.suffix in _TYPES
        }
        self.names = {file.stem for file in directory.glob("*.html")}
        self._html = {file.stem: file.read_text("utf-8") for file in directory.glob("*.html")}

    def page(self, name: str, settings: Mapping[str, object], *, policy: str) -> File:
        """Return a page with the settings that its script reads. Raises KeyError for one that was not built.

        policy: its Content-Security-Policy, as `content_security_policy` makes it.
        """
        text = html.escape(json.dumps(settings, separators=(",", ":")))
        body = self._html[name].replace(_SETTINGS, text).encode()
        return File(
            body=body,
            media_type="text/html; charset=utf-8",
            etag=_etag(body),
            headers=[
                *SAFE,
                (b"content-security-policy", policy.encode("ascii")),
                (b"cache-control", _REVALIDATED),
            ],
        )


def load(directory: Path = BUILT) -> BuiltPages | None:
    """Return the pages; None if they are not built."""
    try:
        return BuiltPages(directory)
    except OSError:
        return None


def content_security_policy(*, connect: tuple[str, ...] = ()) -> str:
    """Return the policy of a page: only its own files, no inline code, no frames.

    connect: origins besides its own that its script may send requests to.
    """
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data: blob:",
            " ".join(("connect-src 'self'", *connect)),
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _asset(file: Path) -> File:
    body = file.read_bytes()
    forms = {"br": f"{file.name}.br", "gzip": f"{file.name}.gz"}
    return File(
        body=body,
        media_type=_TYPES[file.suffix],
        etag=_etag(body),
        # Their names change with their content.
        headers=[*SAFE, (b"cache-control", _FOREVER)],
        encodings={
            coding: compressed.read_bytes()
            for coding, name in forms.items()
            if (compressed := file.with_name(name)).is_file()
        },
    )


def _etag(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=12).hexdigest()
