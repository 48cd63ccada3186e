"""What is stored with an upload's object: content type, name for downloads, and metadata within the budget of S3.

A download by a presigned URL comes from the bucket as it is, so nothing that a client says may run in a browser: the object is
always an attachment.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from urllib.parse import quote

from tusd_py.storage.s3.object_store import Properties

_BUDGET_BYTES = 2 * 1024 - 128
"""What S3 takes for names and values, less our own token."""
_NAME_BYTES = 180
_READ_BYTES = 1024
"""Of a file name, before what is not printable is left out."""
_is_type = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,100}/[A-Za-z0-9!#$&^_.+-]{1,100}").fullmatch
_is_key = re.compile(r"[a-z0-9_-]{1,64}").fullmatch
RESERVED = "tusd-py-"
"""What the names begin with that are ours in the metadata of an object: no client and no hook sets them."""
_PLAIN = "!#$&'()*+,-./:;<=>?@[]^_`{|}~ "


def properties_of(metadata: Mapping[str, bytes], *, only: Collection[str] = ()) -> Properties:
    """Return the properties of the object of an upload with this metadata.

    Pairs are kept in order as long as they fit: names in lower case, values percent-encoded beyond printable ASCII. Names of
    ours are left out. only: keys that are kept; empty for all.
    """
    kept: dict[str, str] = {}
    room = _BUDGET_BYTES
    for key, value in metadata.items():
        if only and key not in only:
            continue
        name, text = key.lower(), quote(value, safe=_PLAIN).strip()
        if name.startswith(RESERVED):
            continue
        if _is_key(name) and name not in kept and text and len(name) + len(text) <= room:
            kept[name] = text
            room -= len(name) + len(text)
    kind = metadata.get("filetype", b"").decode("latin-1")
    return Properties(
        content_type=kind if _is_type(kind) else "application/octet-stream",
        content_disposition=_disposition(metadata.get("filename", b"")),
        metadata=kept,
    )


def _disposition(filename: bytes) -> str:
    last = filename.replace(b"\\", b"/").rpartition(b"/")[2]
    # Cut first: a client may send 47 kB of it.
    text = last[:_READ_BYTES].decode("utf-8", "ignore")
    name = "".join(each for each in text if each.isprintable()).strip()
    name = name.encode()[:_NAME_BYTES].decode("utf-8", "ignore")
    if not name:
        return "attachment"
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"
