"""`tusd-py uploads`: lists, shows and removes uploads.

Listing reads the storage without locks, whether a server runs or not. Removing needs the upload's lock, so a running server
that keeps its locks in memory is asked to do it, as for a sweep.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial

from tusd_py import logs
from tusd_py.cli.output import Listing, format_time, printable, write_json, write_line
from tusd_py.service.backends import create_store
from tusd_py.service.instance import reader
from tusd_py.settings.commandline import Parser, UsageError, suggestion
from tusd_py.settings.load import add_flags, load_arguments
from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError, Store, Upload, UploadGone, UploadNotFound
from tusd_py.storage.skipped import printable as printable_path
from tusd_py.uploads.model import UploadState
from tusd_py.uploads.service import Uploads

USAGE = "list | show ID... | rm ID... [--json] [options of serve]"
ABOUT = """\
Print or remove uploads. Give it the same options as the server. The server need not be running.

list prints a page of uploads, ordered by id. show prints everything about the given uploads. rm removes them, finished or \
not, unless a client is writing to them. The exit code is 1 if an ID was not found or could not be removed.
"""

_ACTIONS = ("list", "show", "rm")
_PAGE = 100
_COLUMNS = {"UPLOAD": 32, "STATE": 9, "OFFSET": 14, "SIZE": 14, "AGE": 8, "OWNER": 12}
_STATE_NAMES = {
    UploadState.RECEIVING: "uploading",
    UploadState.COMPLETE: "uploading",
    UploadState.WAITING: "waiting",
    UploadState.FINISHED: "finished",
    UploadState.EXPIRED: "expired",
}
"""State in the output; a finished upload that is a part is listed as "part"."""


def add_arguments(parser: Parser) -> None:
    """Declare the action, its ids and all settings."""
    parser.add_argument("action", nargs="?", default="")
    parser.add_argument("ids", nargs="*", default=[])
    for flag, metavar, meaning in (
        ("--limit", "NUMBER", f"Uploads per page of list. Default: {_PAGE}."),
        ("--after", "ID", "List the uploads after this id, the last one of the previous page."),
    ):
        parser.option(flag, meaning, section="Output", metavar=metavar)
    parser.option(
        "--json", "Print one JSON object per line.", section="Output", action="store_true"
    )
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the action and return the exit code."""
    given = vars(arguments)
    action, ids = str(arguments.action), list(arguments.ids)
    limit = _check(action, ids, given.get("limit"))
    settings = load_arguments(arguments, os.environ).settings
    logs.configure(settings.log_format, "warning")
    as_json = "json" in given
    try:
        if action == "rm":
            return asyncio.run(_remove(settings, ids))
        if not settings.upload_dir.is_dir():
            raise StorageError(f"there are no uploads: {settings.upload_dir} is no directory")
        if action == "show":
            return asyncio.run(_show(_reader(settings), ids, as_json=as_json))
        after = given.get("after") or ""
        return asyncio.run(_list(_reader(settings), limit, after, as_json=as_json))
    except StorageError as problem:
        sys.stderr.write(f"tusd-py uploads: {problem}\n")
        return 1


def _check(action: str, ids: list[str], limit: str | None) -> int:
    """Check the arguments and return the limit. Raises UsageError."""
    if action not in _ACTIONS:
        given = f'"{action}" is no action' if action else "no action was given"
        raise UsageError(f"{given}; give list, show or rm{suggestion(action, _ACTIONS)}")
    if action == "list" and ids:
        raise UsageError(f'unexpected argument "{ids[0]}"; list lists all')
    if action != "list" and not ids:
        raise UsageError(f"give ids of uploads to {action}")
    if limit is None:
        return _PAGE
    if not re.fullmatch(r"[1-9][0-9]{0,6}", limit):
        raise UsageError(f"--limit {json.dumps(limit)}: give a whole number")
    return int(limit)


@dataclass(frozen=True, slots=True)
class _Reader:
    """The store and its uploads, for reading."""

    store: Store
    uploads: Uploads


def _reader(settings: Settings) -> _Reader:
    store = create_store(settings)
    return _Reader(store, reader(settings, store))


async def _list(reader: _Reader, limit: int, after: str, *, as_json: bool) -> int:
    listing = Listing(
        _COLUMNS,
        cells=partial(_cells, reader.uploads),
        document=partial(_document, reader.uploads),
        as_json=as_json,
    )
    last = ""
    async for upload in _page(reader, limit, after):
        listing.write(upload)
        last = upload.id
    if listing.count == limit:
        sys.stderr.write(f"tusd-py uploads: continue with --after {last}\n")
    return 0


async def _page(reader: _Reader, limit: int, after: str) -> AsyncIterator[Upload]:
    """Yield a page of uploads, ordered by id, holding no more than a page of ids in memory."""
    reported = set[str]()

    def report_skipped(path: str, problem: Exception) -> None:
        # The whole storage is scanned for each page.
        if path not in reported:
            reported.add(path)
            sys.stderr.write(f"tusd-py uploads: {printable_path(path)} is passed over: {problem}\n")

    while limit > 0:
        # A heap of the smallest ids so far, the largest on top.
        heap: list[_Reversed] = []
        async for upload_id in reader.store.ids(report_skipped):
            if upload_id > after:
                if len(heap) < limit:
                    heapq.heappush(heap, _Reversed(upload_id))
                elif upload_id < heap[0].text:
                    heapq.heapreplace(heap, _Reversed(upload_id))
        if not heap:
            return
        for upload_id in sorted(each.text for each in heap):
            after = upload_id
            try:
                upload = await reader.uploads.load(upload_id)
            except (UploadNotFound, UploadGone):
                continue
            except StorageError as problem:
                sys.stderr.write(f"tusd-py uploads: {problem}\n")
                continue
            limit -= 1
            yield upload


@dataclass(frozen=True, slots=True)
class _Reversed:
    """An id that sorts in reverse order."""

    text: str

    def __lt__(self, other: _Reversed) -> bool:
        return self.text > other.text


async def _show(reader: _Reader, ids: list[str], *, as_json: bool) -> int:
    missing = shown = 0
    for upload_id in ids:
        try:
            upload = await reader.uploads.load(upload_id)
            document = _document(reader.uploads, upload) | {"metadata": _metadata(upload)}
            if as_json:
                write_json(document)
            else:
                _write_fields(document, is_first=shown == 0)
            shown += 1
        except UploadGone:
            missing += 1
            sys.stderr.write(f"tusd-py uploads: {json.dumps(upload_id)} was removed\n")
        except UploadNotFound:
            missing += 1
            sys.stderr.write(f"tusd-py uploads: there is no upload {json.dumps(upload_id)}\n")
        except StorageError as problem:
            missing += 1
            sys.stderr.write(f"tusd-py uploads: {json.dumps(upload_id)}: {problem}\n")
    return 1 if missing else 0


async def _remove(settings: Settings, ids: list[str]) -> int:
    # Imported here, as the other actions do without.
    from tusd_py.maintenance.local import MaintenanceError  # noqa: PLC0415
    from tusd_py.service.connect import open_maintenance  # noqa: PLC0415

    failures = 0
    try:
        async with open_maintenance(settings, may_open=True) as maintenance:
            for upload_id in ids:
                problem = await maintenance.remove(upload_id)
                if problem is not None:
                    failures += 1
                    sys.stderr.write(f"tusd-py uploads: {json.dumps(upload_id)}: {problem}\n")
    except MaintenanceError as problem:
        sys.stderr.write(f"tusd-py uploads: {problem}\n")
        return 1
    return 1 if failures else 0


def _write_fields(document: Mapping[str, object], *, is_first: bool) -> None:
    """Print an upload as a field a line, with an empty line before all but the first."""
    if not is_first:
        write_line("")
    for name, value in document.items():
        text = value if isinstance(value, str) else json.dumps(value)
        write_line(f"{name:10}  {printable(text)}")


def _document(uploads: Uploads, upload: Upload) -> dict[str, object]:
    expires = uploads.expiry.due_at(upload)
    info = upload.info
    return {
        "upload": upload.id,
        "state": _state(uploads, upload),
        "offset": upload.offset,
        "size": upload.length,
        "owner": info.owner,
        "created": format_time(info.created_at),
        "changed": format_time(upload.changed_at),
        "finished": None if info.finished_at is None else format_time(info.finished_at),
        "expires": None if expires is None else format_time(expires),
        "parts": list(info.parts),
    }


def _state(uploads: Uploads, upload: Upload) -> str:
    state = uploads.state_of(upload)
    if state is UploadState.FINISHED and upload.info.is_partial:
        return "part"
    return _STATE_NAMES[state]


def _cells(uploads: Uploads, upload: Upload) -> tuple[str, ...]:
    age = _age(time.time() - upload.changed_at)
    size = "-" if upload.length is None else str(upload.length)
    owner = printable(upload.info.owner) or "-"
    upload_id = printable(upload.id)
    return upload_id, _state(uploads, upload), str(upload.offset), size, age, owner


def _metadata(upload: Upload) -> dict[str, str]:
    return {key: value.decode("utf-8", "replace") for key, value in upload.info.metadata.items()}


def _age(seconds: float) -> str:
    """Format an age in its largest unit, as in "3d" or "12m"."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
