"""Names of finished files: a template of the operator's, filled in with what is known of an upload.

Values come from clients, so each stays within one name: no slashes, no leading dots, no control characters, nothing that
Windows does not take, no endings that the layout of the store uses. No two owners get one name, so that no owner's files come
among those of another. Not for: making the files (`file/finished.py`), placing objects (`s3/store.py`).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime

from tusd_py.protocol.metadata import text_of
from tusd_py.settings.name_template import PLACEHOLDER
from tusd_py.storage.base import MAX_ID_BYTES, RESERVED_ENDINGS, UploadInfo

_NUMBERED = 9
"""Numbers that are tried for a name that is taken; the id comes after them, as it is nobody else's."""
_SUFFIX_BYTES = MAX_ID_BYTES // 4
"""Space that is left for a number or an id."""
_NAME_BYTES = 200
_OWNER_BYTES = 80
_ENDING_BYTES = 16
_EMPTY = "_"
_UNSAFE = frozenset('/\\:*?"<>|%')
_JOINERS = ("\u200c", "\u200d")
"""Format characters that are part of how words and emoji are written."""
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", re.IGNORECASE | re.ASCII)
_PACKED = re.compile(r"\.[A-Za-z0-9]{1,5}\.(gz|bz2|xz|zst|lz4)", re.IGNORECASE)


class FinishedNames:
    """Fills in one template. longest: bytes that a whole name may have, slashes included."""

    def __init__(self, template: str, *, longest: int = 4000) -> None:
        self._parts = [part for part in template.split("/") if part]
        most = (longest - _SUFFIX_BYTES) // len(self._parts) - 1
        self._most_bytes = min(_NAME_BYTES, most)

    def of(self, info: UploadInfo) -> Iterator[str]:
        """Yield the names that an upload may get, in the order in which they are tried; relative, with slashes."""
        *directories, name = (self._filled(part, info) for part in self._parts)
        prefix = "".join(f"{each}/" for each in directories)
        yield prefix + name
        stem, ending = _split(name)
        for number in range(1, _NUMBERED + 1):
            yield f"{prefix}{stem} ({number}){ending}"
        yield f"{prefix}{stem} ({_shortened(_clean(info.id), _SUFFIX_BYTES - 4)}){ending}"

    def _filled(self, part: str, info: UploadInfo) -> str:
        text = PLACEHOLDER.sub(lambda found: _value(found["field"], info), part)
        stem, ending = _split(_clean(text))
        room = self._most_bytes - len(ending.encode())
        return _clean(_shortened(stem, max(room, 1)) + ending)


def _value(field: str, info: UploadInfo) -> str:
    if field == "id":
        return _clean(info.id)
    if field == "owner":
        return _owner(info.owner)
    if field == "date":
        return datetime.fromtimestamp(info.created_at, UTC).strftime("%Y-%m-%d")
    if field == "filename":
        # Some clients send a path.
        text = info.file_name.replace("\\", "/").rpartition("/")[2]
        return _clean(text) if text.strip() else _clean(info.id)
    return _clean(text_of(info.metadata.get(field.removeprefix("metadata."), b"")))


def _owner(owner: str) -> str:
    """The name for an owner, which no other owner has."""
    name = _shortened(_clean(owner), _OWNER_BYTES)
    if not owner or (name == owner and "~" not in owner and owner != _EMPTY):
        return name
    return f"{name}~{hashlib.sha256(owner.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _clean(text: str) -> str:
    """A text as one name that every file system and every store takes."""
    name = "".join(map(_safe, text)).lstrip(". ").rstrip(". ")
    if _DEVICE.match(name):
        name = f"_{name}"
    return (f"{name}_" if name.endswith(RESERVED_ENDINGS) else name) or _EMPTY


def _safe(character: str) -> str:
    kind = unicodedata.category(character)
    # Control, format, surrogate, private and unassigned characters, and separators of lines and paragraphs.
    is_invisible = kind in ("Zl", "Zp") or (kind[0] == "C" and character not in _JOINERS)
    if is_invisible or character in _UNSAFE:
        return "_"
    return character


def _split(name: str) -> tuple[str, str]:
    """A name as its stem and its ending, which has the dot; that of a packed file has two."""
    stem, dot, ending = name.rpartition(".")
    if not stem or len(ending.encode()) > _ENDING_BYTES:
        return name, ""
    before = stem.rpartition(".")
    if before[0] and _PACKED.fullmatch(f".{before[2]}.{ending}"):
        return before[0], f".{before[2]}.{ending}"
    return stem, dot + ending


def _shortened(text: str, most_bytes: int) -> str:
    """The beginning of a text that has at most that many bytes of UTF-8."""
    return text.encode()[:most_bytes].decode("utf-8", "ignore").rstrip(". ") or _EMPTY
