"""Uploads that another server stored in the directory: reading its records, checking them against the bytes, conversion.

tusd's records are read by `records.py`, since ours are the same; tuspyserver's are read here. tusd keeps no count, so the data
file's length is the truth; tuspyserver keeps one, and after a crash its file may be longer, with bytes that no client was told
about. An upload that contradicts itself is not trusted: it is left untouched for the operator.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from email.utils import formatdate, parsedate_to_datetime
from typing import Literal, cast

from tusd_py.protocol import metadata
from tusd_py.storage.base import (
    Counted,
    Upload,
    UploadInfo,
    UploadUntrusted,
)
from tusd_py.storage.file.files import opened

Layout = Literal["ours", "tusd", "tuspyserver", "unknown"]

LOCKS = ".locks"
"""tuspyserver's directory of lock files."""

_KEYS_OF_TUSPYSERVER = frozenset(("metadata", "size", "offset", "created_at"))
_COMPARE_BYTES = 1024 * 1024


def layout_of(document: object) -> Layout:
    """Return which server wrote a record, given as a JSON document."""
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
    """Read tuspyserver's record. changed_at: mtime of the bytes, in seconds since the epoch.

    Raises UploadUntrusted if it is malformed, or cannot be taken over without loss.
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
    if metadata.parse(header, strict=False) != pairs:
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
        # Theirs is a point in time, ours a time since the last byte.
        expire_after=None if expires is None else max(1.0, expires - changed_at),
        foreign=True,
        counted=Counted(
            _count(document["offset"]) or 0, _count(document.get("upload_chunk_size")) or 0
        ),
    )


def as_tuspyservers(upload: Upload, *, expires: float | None) -> bytes:
    """Return the record with which tuspyserver continues one of our uploads. expires: seconds since the epoch, None for never.

    Raises UploadUntrusted if its format cannot express the upload.
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
        # Local time without a zone, as tuspyserver writes it.
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
    """Return the state of a foreign upload. size: of the data file; changed_at: its mtime, in seconds since the epoch.

    Raises UploadUntrusted if the record and the bytes contradict each other.
    """
    if info.is_final and not info.length and info.counted is None:
        info = info._replace(length=size)
    offset = size if info.counted is None else info.counted.offset
    problem = ""
    if size < offset:
        problem = f"its record counts {offset} bytes, but there are only {size}"
    elif info.length is not None and offset > info.length:
        problem = f"it has {offset} bytes, but its length is {info.length}"
    elif info.is_final and offset != info.length:
        problem = "its parts were not joined to the end; join them again"
    elif offset == info.length and size > offset:
        problem = f"it is finished, but there are {size - offset} bytes too many, and which ones is unknown"
    if problem:
        raise UploadUntrusted(f"{info.id}: {problem}")
    if offset == info.length:
        info = info._replace(finished_at=changed_at)
    return Upload(info, offset, max(changed_at, info.created_at))


def check(upload: Upload, path: str) -> None:
    """Check that the bytes that count are those that the client sent, as far as detectable. Raises UploadUntrusted."""
    with opened(path, os.O_RDONLY | os.O_NOFOLLOW) as descriptor:
        _check(upload, descriptor)


def cut(upload: Upload, path: str) -> None:
    """Cut off bytes behind those that count, durably. Raises UploadUntrusted as `check` does."""
    if upload.info.counted is None:
        return
    with opened(path, os.O_RDWR | os.O_NOFOLLOW) as descriptor:
        status = os.fstat(descriptor)
        if status.st_size <= upload.offset:
            return
        _check(upload, descriptor)
        os.ftruncate(descriptor, upload.offset)
        # The mtime decides when the upload expires.
        os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(descriptor)


def _check(upload: Upload, descriptor: int) -> None:
    counted, size = upload.info.counted, os.fstat(descriptor).st_size
    if counted is not None and size > counted.offset and _is_displaced(descriptor, counted, size):
        raise UploadUntrusted(
            f"{upload.id}: bytes of a request that was cut off stand in it twice, so that those behind are displaced"
        )


def _is_displaced(descriptor: int, counted: Counted, size: int) -> bool:
    """Return whether the last counted request was appended behind uncounted bytes of an earlier one.

    tuspyserver appends: if it was killed in the middle of a request and the client resumed, the bytes of the first request
    precede those of the second, which repeats them.
    """
    lost, last = size - counted.offset, counted.last_request
    start = counted.offset - last
    if last <= 0 or start < 0:
        return False
    overlap = min(lost, last)
    if not _are_same(descriptor, start, start + lost, overlap):
        return False
    # If all of them are the same, both readings give the same bytes.
    return not _are_same(descriptor, start, start + lost, last)


def _are_same(descriptor: int, first: int, second: int, count: int) -> bool:
    while count:
        piece = min(_COMPARE_BYTES, count)
        if os.pread(descriptor, piece, first) != os.pread(descriptor, piece, second):
            return False
        first, second, count = first + piece, second + piece, count - piece
    return True


@contextmanager
def locked(directory: str, name: str, *, must_exist: bool = False) -> Iterator[None]:
    """Hold tuspyserver's lock on an upload. Without its directory of locks, no such server uses the uploads.

    must_exist: create that directory if it is missing. Raises BlockingIOError if the lock is held.
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
    """Return whether the lock file still exists: its holder removes it in the end."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


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
    """Parse a time of tuspyserver's: an HTTP date, ISO 8601 (local time if it has no zone) or a number."""
    if value is None or value == "":
        return None
    if isinstance(value, int | float):
        return float(value)
    text = str(value)
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return datetime.fromisoformat(text).timestamp()
