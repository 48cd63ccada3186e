"""Progress of an upload for those who watch: a GET of its URL that asks for this media type.

`HEAD` belongs to clients that resume: it ends the request that is writing, so that the offset holds. This takes no lock and
disturbs nobody, and its offset may have grown before it arrives.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from tusd_py.storage.base import Upload
from tusd_py.web.messages import media_types

MEDIA_TYPE = "application/vnd.tusd-py.progress+json"
"""No client that downloads asks for it by chance, as many do for `application/json`."""


def is_wanted(accept: str) -> bool:
    """Whether an `Accept` field names the media type."""
    # Most requests end with the first look.
    return "tusd-py.progress" in accept.lower() and MEDIA_TYPE in media_types(accept)


def document(upload: Upload, expires_at: float | None) -> bytes:
    """The progress as JSON. expires_at: seconds since the epoch, None for an upload that does not expire."""
    info = upload.info
    expires = None if expires_at is None else datetime.fromtimestamp(int(expires_at), UTC)
    return json.dumps(
        {
            "id": upload.id,
            # A final that waits for its parts has no bytes of its own.
            "offset": upload.offset if upload.joined else None,
            "length": info.length,
            "finished": upload.finished,
            "is_partial": info.is_partial,
            "is_final": info.is_final,
            "expires_at": None if expires is None else expires.isoformat().replace("+00:00", "Z"),
        }
    ).encode()
