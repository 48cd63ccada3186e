"""The format of records, the `.info` files beside the uploads' bytes: tusd's keys in tusd's order, and ours behind them.

tusd ignores keys that it does not know, so a directory can change servers in both directions. Our keys are in one object,
`TusdPy`; if it is missing, another server wrote the record last.

`FinishedAt` comes last and has the same length before and after the finish, so it can be overwritten in place: an upload that
finishes needs no new file, and the record's size never changes, as a power cut may keep a new size without the new content. The
first and the last byte of a time of finish differ from those of an unfinished record: a torn write, of which only the beginning
or only the end reached the disk, still reads as unfinished.

Earlier versions ended the record of a finished upload with a line break, and its time with zeros. Such records are read; NULs
behind the last brace, which a power cut made of that line break, are ignored until the record is replaced.

Whatever is found in the place of a record is read safely, a pipe, a link or a huge file, and its values are checked, so that
later code can rely on their types and ranges.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from pathlib import PurePosixPath
from typing import TypedDict

from tusd_py.protocol import errors, metadata
from tusd_py.storage.base import (
    LONGEST_SECONDS,
    TIME_DIGITS,
    RecordUnreadable,
    UploadInfo,
    is_valid_id,
)
from tusd_py.storage.file import foreign
from tusd_py.storage.file.files import opened

MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)
"""Errors of reading JSON of an unexpected shape: values of other types, too large, or nested too deep."""


class _Storage(TypedDict, total=False):
    Path: str


class _Ours(TypedDict, total=False):
    Metadata: str
    Concat: str
    CreatedAt: float
    ExpireAfter: float | None
    Retain: float | None
    Owner: str
    MaxSize: int | None
    AwaitsCompletion: bool
    ReprDigest: str
    WantedDigest: str
    FinishedPath: str
    Quota: int
    FinishedAt: float | None


class _Info(TypedDict, total=False):
    Size: int
    SizeIsDeferred: bool
    MetaData: dict[str, str] | None
    IsPartial: bool
    IsFinal: bool
    PartialUploads: list[str] | None
    Storage: _Storage | None
    TusdPy: _Ours


def serialize(info: UploadInfo, *, root: str) -> bytes:
    """Serialize a record to the file's content. root: absolute path of the upload directory."""
    # Without `json`, which takes twice as long: this runs twice for each upload.
    pairs = (
        f"{_text(key)}:{_text(value.decode('utf-8', 'replace'))}"
        for key, value in info.metadata.items()
    )
    path = f"{root}/{info.location or info.id}"
    return (
        f'{{"ID":{_text(info.id)},"Size":{info.length or 0}'
        f',"SizeIsDeferred":{_value(info.length is None and not info.is_final)},"Offset":0'
        f',"MetaData":{{{",".join(pairs)}}}'
        f',"IsPartial":{_value(info.is_partial)},"IsFinal":{_value(info.is_final)}'
        f',"PartialUploads":{_encode(info.parts) if info.parts else "null"}'
        f',"Storage":{{"InfoPath":{_text(f"{root}/{info.id}.info")},"Path":{_text(path)}'
        ',"Type":"filestore"}'
        f',"TusdPy":{{"Metadata":{_text(info.metadata_header)},"Concat":{_text(info.concat_header)}'
        f',"CreatedAt":{info.created_at!r}'
        f',"ExpireAfter":{_value(info.expire_after)},"Retain":{_value(info.retain)}'
        f',"Owner":{_text(info.owner)},"MaxSize":{_value(info.max_size)}'
        f"{_rare_values(info)}"
    ).encode("utf-8", "replace") + ending(info.finished_at)


def _rare_values(info: UploadInfo) -> str:
    """Serialize values that most uploads do not have."""
    texts = (
        ("ReprDigest", info.repr_digest),
        ("WantedDigest", info.wanted_digest),
        ("FinishedPath", info.finished_path),
    )
    quota = "" if info.quota is None else f',"Quota":{info.quota}'
    return (
        quota
        + (',"AwaitsCompletion":true' if info.awaits_completion else "")
        + "".join(f',"{name}":{_text(text)}' for name, text in texts if text)
    )


def ending(finished_at: float | None) -> bytes:
    """Return the end of a record. All ends have the same length, so `UNFINISHED` can be overwritten by a time of finish."""
    if finished_at is None:
        return UNFINISHED
    # Padded with blanks, not zeros: the last byte must differ from that of an unfinished record.
    digits = f"{finished_at:.{TIME_DIGITS}f}".rstrip("0").rstrip(".").ljust(len(_NEVER))
    return b',"FinishedAt":%b}}' % digits.encode()


_NEVER = "0.000000000000000"
UNFINISHED = b',"FinishedAt":%b}}' % _NEVER.encode()

_ending = re.compile(
    rb',"FinishedAt":(?P<time>.{%d})\}\}(?P<line_break>\n?)\Z' % len(_NEVER), re.DOTALL
).search
_is_time = re.compile(rb"[1-9][0-9]*(?:\.[0-9]{1,%d})? *" % TIME_DIGITS).fullmatch


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_text = json.encoder.encode_basestring


def _value(value: float | None) -> str:
    """Serialize a number, a boolean or null."""
    if value is None:
        return "null"
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def parse(content: bytes, *, upload_id: str, root: str, changed_at: float) -> UploadInfo:
    """Parse a record.

    Args:
        content: The file's content.
        upload_id: The upload's id.
        root: Absolute path of the upload directory.
        changed_at: Used for times that another server did not record, in seconds since the epoch.

    Raises:
        RecordUnreadable: It is not a valid record.
    """
    try:
        document = json.loads(_without_torn_finish(strip_nuls(content)))
        if foreign.layout_of(document) == "tuspyserver":
            info = foreign.read_tuspyservers(document, upload_id=upload_id, changed_at=changed_at)
        else:
            info = _read(document, upload_id, root, changed_at)
        check_values(info)
        return info
    except (*MALFORMED, errors.ProtocolError) as problem:
        raise RecordUnreadable(
            f"{upload_id}.info is not a record of an upload: {problem!r}"
        ) from problem


def strip_nuls(content: bytes) -> bytes:
    """Remove NULs from the end of a record; the result is empty if the content never reached the disk."""
    return content.rstrip(b"\0")


def _without_torn_finish(content: bytes) -> bytes:
    """Replace a partly written end of a record by that of an unfinished one."""
    found = _ending(content)
    if found is None:
        return content
    time = found["time"]
    # Earlier versions padded the time with zeros, followed by a line break.
    if _is_time(time) and (not time.endswith(b"0") or found["line_break"]):
        return content
    return content[: found.start()] + UNFINISHED


def _read(document: _Info, upload_id: str, root: str, changed_at: float) -> UploadInfo:
    is_foreign = document.get("TusdPy") is None
    ours = document.get("TusdPy") or _Ours()
    header = ours.get("Metadata", "")
    if header:
        pairs = metadata.parse(header, strict=False)
    else:
        texts = document.get("MetaData") or {}
        pairs = {str(key): str(value).encode("utf-8") for key, value in texts.items()}
    parts = tuple(str(part) for part in document.get("PartialUploads") or ())
    is_partial, is_final = bool(document.get("IsPartial")), bool(document.get("IsFinal"))
    concat_header = ours.get("Concat", "")
    if not concat_header and is_partial:
        concat_header = "partial"
    if not concat_header and is_final:
        concat_header = "final;" + " ".join(parts)
    deferred = bool(document.get("SizeIsDeferred"))
    size = int(document["Size"])
    finished_at = _finished_at(ours)
    # A final that waits for parts has no length yet; tusd's format can express that only for deferred lengths.
    unknown = deferred or (is_final and size == 0 and not is_foreign and finished_at is None)
    return UploadInfo(
        id=upload_id,
        length=None if unknown else size,
        metadata=pairs,
        metadata_header=header or metadata.serialize(pairs),
        concat_header=concat_header,
        is_partial=is_partial,
        is_final=is_final,
        parts=parts,
        created_at=float(ours.get("CreatedAt", changed_at)),
        finished_at=finished_at,
        expire_after=ours.get("ExpireAfter"),
        retain=ours.get("Retain"),
        owner=ours.get("Owner", ""),
        max_size=ours.get("MaxSize"),
        location=_location(document.get("Storage"), upload_id, root),
        foreign=is_foreign,
        awaits_completion=bool(ours.get("AwaitsCompletion")),
        repr_digest=ours.get("ReprDigest", ""),
        wanted_digest=ours.get("WantedDigest", ""),
        quota=ours.get("Quota"),
        finished_path=ours.get("FinishedPath", ""),
    )


def _finished_at(ours: _Ours) -> float | None:
    written = float(ours.get("FinishedAt") or 0)
    return written if 0 < written < _LAST_SECOND else None


def _location(storage: _Storage | None, upload_id: str, root: str) -> str | None:
    """Return the path of the bytes relative to `root`; None for the usual place and for one outside of the directory."""
    path = (storage or {}).get("Path")
    if not path or path == f"{root}/{upload_id}":
        return None
    try:
        relative = str(PurePosixPath(path).relative_to(root))
    except ValueError:
        return None
    return relative if relative != upload_id and is_valid_id(relative) else None


_MAX_RECORD_BYTES = 64 * 1024 * 1024
"""More than the record of a final with the maximum of parts."""


def read_record(path: str) -> tuple[bytes, os.stat_result]:
    """Return the content and the status of a record's file. Raises OSError, RecordUnreadable if it is not a record."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer; files ignore it.
        with opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise RecordUnreadable(f"{path} is not a regular file")
            if status.st_size > _MAX_RECORD_BYTES:
                raise RecordUnreadable(f"{path} has {status.st_size} bytes, which is no record")
            return os.read(descriptor, status.st_size + 1), status
    except OSError as problem:
        if problem.errno != errno.ELOOP:
            raise
        raise RecordUnreadable(f"{path} is a symbolic link") from problem


_LAST_SECOND = 1e11
"""Largest distance of a valid time from the epoch, in seconds; calendars end there."""
_MAX_BYTES = 2**63 - 1


def check_values(info: UploadInfo) -> None:
    """Raise ValueError with the name of the first invalid value of `info`."""
    _check("Size", info.length is None or _is_count(info.length), info.length)
    _check("MaxSize", info.max_size is None or _is_count(info.max_size), info.max_size)
    _check("Quota", info.quota is None or _is_count(info.quota), info.quota)
    _check("CreatedAt", _is_number(info.created_at, -_LAST_SECOND, _LAST_SECOND), info.created_at)
    for name, value, most in (
        ("FinishedAt", info.finished_at, _LAST_SECOND),
        ("ExpireAfter", info.expire_after, LONGEST_SECONDS),
        ("Retain", info.retain, LONGEST_SECONDS),
    ):
        _check(name, value is None or _is_number(value, 0, most), value)
    for name, text in (
        ("Owner", info.owner),
        ("Metadata", info.metadata_header),
        ("Concat", info.concat_header),
        ("ReprDigest", info.repr_digest),
        ("WantedDigest", info.wanted_digest),
        ("FinishedPath", info.finished_path),
    ):
        _check(name, isinstance(text, str), text)


def _check(name: str, is_right: bool, value: object) -> None:
    if not is_right:
        raise ValueError(f"{name} is {value!r:.100}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_BYTES


def _is_number(value: object, least: float, most: float) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and least <= value <= most
    )
