"""Uploads that another server kept in the directory: what its record says, how much of it the bytes bear out, taking it over.

tusd's records are read by `info.py`, since ours are the same; tuspyserver's are read here. tusd keeps no count, so the data
file's length is the truth; tuspyserver keeps one, and after a crash its file may be longer, with bytes that nobody was told
of. Whatever contradicts itself is not trusted: it is left as it is, for a person to look at.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from email.utils import formatdate, parsedate_to_datetime
from typing import Literal, cast

from tusd_py.protocol import metadata
from tusd_py.storage.base import (
    Counted,
    Upload,
    UploadInfo,
    UploadUntrusted,
    is_valid_id,
)

Layout = Literal["ours", "tusd", "tuspyserver", "unknown"]

LOCKS = ".locks"
"""tuspyserver's directory of lock files."""

_KEYS_OF_TUSPYSERVER = frozenset(("metadata", "size", "offset", "created_at"))
_COMPARED = 1024 * 1024


def layout_of(document: object) -> Layout:
    """Whose record a JSON document is."""
    if not isinstance(document, dict):
        return "unknown"
    if "TusdPy" in document:
        return "ours"
    if "ID" in document and "Size" in document:
        return "tusd"
    return "tuspyserver" if document.keys() >= _KEYS_OF_TUSPYSERVER else "unknown"


def read_tuspyservers(
    document: Mapping[str, object], *, upload_id: str, changed_at: float
) -> UploadInfo:
    """The record of tuspyserver's in `document`; changed_at: when the bytes were, in seconds since the epoch.

    Raises UploadUntrusted for what makes no sense, or cannot be taken over without loss.
    """
    try:
        return _read(document, upload_id, changed_at)
    except (ValueError, TypeError, OverflowError) as problem:
        raise UploadUntrusted(f"{upload_id}: its record makes no sense: {problem}") from problem


def _read(document: Mapping[str, object], upload_id: str, changed_at: float) -> UploadInfo:
    pairs = {
        str(key): str(value).encode("utf-8")
        for key, value in _mapping(document["metadata"]).items()
    }
    header = metadata.serialize(pairs)
    if metadata.parse(header) != pairs:
        raise UploadUntrusted(f"{upload_id}: its metadata has keys that tus 1.0.0 does not allow")
    is_partial, is_final = bool(document.get("is_partial")), bool(document.get("is_final"))
    parts = tuple(str(part) for part in cast("list[object]", document.get("partial_uploads") or []))
    expires = seconds(document.get("expires"))
    deferred = bool(document.get("defer_length"))
    size = _count(document["size"])
    return UploadInfo(
        id=upload_id,
        length=None if deferred else size,
        metadata=pairs,
        metadata_header=header,
        concat_header="partial" if is_partial else "final;" + " ".join(parts) if is_final else "",
        is_partial=is_partial,
        is_final=is_final,
        parts=parts,
        created_at=seconds(document["created_at"]) or changed_at,
        # Theirs is a moment, ours counts from the last byte.
        expire_after=None if expires is None else max(1.0, expires - changed_at),
        foreign=True,
        counted=Counted(
            _count(document["offset"]) or 0, _count(document.get("upload_chunk_size")) or 0
        ),
    )


def as_tuspyservers(upload: Upload, *, expires: float | None) -> bytes:
    """The record with which tuspyserver goes on with an upload of ours; expires: seconds since the epoch, None for never.

    Raises UploadUntrusted for what its format has no room for.
    """
    info = upload.info
    if not upload.joined:
        raise UploadUntrusted(f"{upload.id}: it waits for its parts, which tuspyserver does not")
    if info.location is not None:
        raise UploadUntrusted(f"{upload.id}: its bytes lie where tuspyserver does not look")
    try:
        texts = {key: value.decode("utf-8") for key, value in info.metadata.items()}
    except UnicodeDecodeError:
        raise UploadUntrusted(f"{upload.id}: its metadata is no text") from None
    document = {
        "metadata": texts,
        "size": info.length,
        "offset": upload.offset,
        "upload_part": 0,
        # Local time without a zone, as theirs writes it.
        "created_at": str(datetime.fromtimestamp(info.created_at)),  # noqa: DTZ006
        "defer_length": info.length is None,
        "upload_chunk_size": 0,
        "expires": None if expires is None else formatdate(expires, usegmt=True),
        "error": None,
        "is_partial": info.is_partial,
        "is_final": info.is_final,
        "partial_uploads": list(info.parts) or None,
    }
    return json.dumps(document, indent=4).encode()


def upload_of(info: UploadInfo, *, size: int, changed_at: float) -> Upload:
    """A foreign upload as it stands. size: bytes that there are; changed_at: of the last, in seconds since the epoch.

    Raises UploadUntrusted where the record and the bytes contradict each other.
    """
    if info.is_final and not info.length and info.counted is None:
        info = replace(info, length=size)
    offset = size if info.counted is None else info.counted.offset
    problem = ""
    if size < offset:
        problem = f"its record counts {offset} bytes, but there are only {size}"
    elif info.length is not None and offset > info.length:
        problem = f"it has {offset} bytes, but its length is {info.length}"
    elif info.is_final and offset != info.length:
        problem = "its parts were not joined to the end; join them again"
    elif offset == info.length and size > offset:
        problem = (
            f"it is finished, but there are {size - offset} bytes too many, and nobody knows which"
        )
    if problem:
        raise UploadUntrusted(f"{info.id}: {problem}")
    if offset == info.length:
        info = replace(info, finished_at=changed_at)
    return Upload(info, offset, max(changed_at, info.created_at))


def check(upload: Upload, path: str) -> None:
    """Raises UploadUntrusted where the bytes that count are not what the client sent, as far as that can be seen."""
    with _opened(path, os.O_RDONLY) as descriptor:
        _check(upload, descriptor)


def cut(upload: Upload, path: str) -> None:
    """Takes off what is behind the bytes that count, if anything is; durable when this returns. Raises as `check` does."""
    if upload.info.counted is None:
        return
    with _opened(path, os.O_RDWR) as descriptor:
        status = os.fstat(descriptor)
        if status.st_size <= upload.offset:
            return
        _check(upload, descriptor)
        os.ftruncate(descriptor, upload.offset)
        # When the last byte came decides when the upload expires.
        os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(descriptor)


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check(upload: Upload, descriptor: int) -> None:
    counted, size = upload.info.counted, os.fstat(descriptor).st_size
    if counted is not None and size > counted.offset and _is_displaced(descriptor, counted, size):
        raise UploadUntrusted(
            f"{upload.id}: bytes of a request that was cut off stand in it twice, so that those behind are displaced"
        )


def _is_displaced(descriptor: int, counted: Counted, size: int) -> bool:
    """Whether the last request that was counted began behind bytes of one that was not, instead of over them.

    tuspyserver appends: when a server was killed in the middle of a request and its client resumed, the bytes of the former
    stand before those of the latter, which repeat them.
    """
    lost, last = size - counted.offset, counted.last_request
    start = counted.offset - last
    if last <= 0 or start < 0:
        return False
    overlap = min(lost, last)
    if not _are_same(descriptor, start, start + lost, overlap):
        return False
    # If all of it is the same there, both readings give the same bytes.
    return not _are_same(descriptor, start, start + lost, last)


def _are_same(descriptor: int, first: int, second: int, count: int) -> bool:
    while count:
        piece = min(_COMPARED, count)
        if os.pread(descriptor, piece, first) != os.pread(descriptor, piece, second):
            return False
        first, second, count = first + piece, second + piece, count - piece
    return True


@contextmanager
def locked(directory: str, name: str, *, must_exist: bool = False) -> Iterator[None]:
    """Holds tuspyserver's lock of an upload, where such a server has been. Raises BlockingIOError if it is held.

    must_exist: it is made where none has been, for whoever comes while such a server runs.
    """
    locks = f"{directory}/{LOCKS}"
    path = f"{locks}/{name}.lock"
    if must_exist:
        os.makedirs(locks, exist_ok=True)
    elif not os.path.isdir(locks):
        yield
        return
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                try:
                    yield
                finally:
                    os.unlink(path)
                return
        finally:
            os.close(descriptor)


def _is_still(path: str, descriptor: int) -> bool:
    """Whether nobody has removed the file in the meantime, as its holder does in the end."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def may_be_upload(name: str) -> bool:
    """Whether a file without a record has a name as both servers give them to uploads."""
    return len(name) == 32 and is_valid_id(name) and set(name) <= set("0123456789abcdef")


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError("the metadata is no object")
    return value


def _count(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no number of bytes")
    return value


def seconds(value: object) -> float | None:
    """A time as tuspyserver writes it: a date of HTTP, ISO 8601 (local time where it names no zone) or a number."""
    if value is None or value == "":
        return None
    if isinstance(value, int | float):
        return float(value)
    text = str(value)
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return datetime.fromisoformat(text).timestamp()
