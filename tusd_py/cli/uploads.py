"""`tusd-py uploads`: lists, shows and removes uploads.

Listing reads the storage without locks, whether a server runs or not. Removing needs the upload's lock, so a running server
that keeps its locks in memory is asked to do it, as for a sweep.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

import click

from tusd_py import logs
from tusd_py.cli.instance import check_directories
from tusd_py.cli.options import Value, action, option, read_settings, subcommand, whole
from tusd_py.cli.output import (
    Listing,
    format_age,
    format_time,
    printable,
    write_fields,
    write_json,
    write_line,
    write_problem,
)
from tusd_py.service.backends import store_to_read
from tusd_py.service.instance import reader
from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError, Store, Upload, UploadGone, UploadNotFound
from tusd_py.storage.skipped import printable as printable_path
from tusd_py.uploads.model import name_of
from tusd_py.uploads.service import Uploads

ABOUT = """\
Print or remove uploads. Give it the same options as the server. The server need not be running.

list prints a page of uploads, ordered by id. show prints everything about the given uploads. rm removes them, finished or
not, unless a client is writing to them or their record cannot be read. The exit code is 1 if an ID was not found or could
not be removed.

With --server a running server does it, by its operators' API (--admin), and list prints the newest uploads first, however many
there are. Without --token-file this user must be able to read the server's state directory.
"""

_PAGE = 100
_COLUMNS = {"UPLOAD": 32, "STATE": 9, "OFFSET": 14, "SIZE": 14, "AGE": 8, "OWNER": 12}


@subcommand("list | show ID... | rm ID... [--json] [options of serve]", ABOUT)
@action("list", "show", "rm")
@click.argument("ids", nargs=-1)
@option(
    "--limit",
    f"Uploads per page of list. Default: {_PAGE}.",
    section="Output",
    type=whole(1, 9_999_999),
)
@option(
    "--after",
    "List the uploads after this id, the last one of the previous page.",
    section="Output",
    type=Value("ID"),
)
@option(
    "--unreadable",
    "Let rm remove also uploads whose record cannot be read, with the bytes under their id; no event is sent.",
    section="Removal",
)
@option(
    "--server",
    "Ask the operators' API at this URL, or on the Unix socket of unix:PATH.",
    section="Server",
    type=Value("URL"),
)
@option(
    "--token-file",
    "File with an access token that may do everything (uploads:admin).",
    section="Server",
    type=Value("FILE"),
)
@option(
    "--state",
    "With --server, list only these: unfinished, finished, part or expired.",
    section="Server",
    type=Value("STATE"),
)
@option(
    "--search",
    "With --server, list uploads whose id, file name or owner begins so.",
    section="Server",
    type=Value("TEXT"),
)
@option("--json", "Print one JSON object per line.", section="Output", name="as_json")
def command(
    *,
    action: str,
    ids: tuple[str, ...],
    limit: int | None,
    after: str | None,
    unreadable: bool,
    server: str | None,
    token_file: str | None,
    state: str | None,
    search: str | None,
    as_json: bool,
) -> int:
    """Run the action and return the exit code."""
    if action == "list" and ids:
        raise click.UsageError(f'unexpected argument "{ids[0]}"; list lists all')
    if action != "list" and not ids:
        raise click.UsageError(f"give ids of uploads to {action}")
    settings = read_settings().settings
    logs.configure(settings.log_format, "warning")
    if server is not None:
        # Imported here, as the usual way does without.
        from tusd_py.cli.operators import RemoteUploads, connect  # noqa: PLC0415

        client = connect(server, token_file, settings.state_dir)
        remote = RemoteUploads(client, _COLUMNS, as_json=as_json)
        if action == "list":
            return remote.list(limit or _PAGE, after or "", state or "all", search or "")
        return remote.show(ids) if action == "show" else remote.remove(ids)
    if token_file or state or search:
        raise click.UsageError("--token-file, --state and --search need --server")
    if action == "rm":
        return asyncio.run(_remove(settings, ids, unreadable=unreadable))
    check_directories(settings)
    return asyncio.run(_read(settings, action, ids, limit or _PAGE, after or "", as_json=as_json))


async def _read(
    settings: Settings, action: str, ids: tuple[str, ...], limit: int, after: str, *, as_json: bool
) -> int:
    async with store_to_read(settings) as store:
        found = _Reader(store, reader(settings, store))
        if action == "show":
            return await _show(found, ids, as_json=as_json)
        return await _list(found, limit, after, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Reader:
    """The store and its uploads, for reading."""

    store: Store
    uploads: Uploads


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
        write_problem(f"continue with --after {last}")
    return 0


async def _page(reader: _Reader, limit: int, after: str) -> AsyncIterator[Upload]:
    """Yield a page of uploads, ordered by id, holding no more than a page of ids in memory."""
    reported = set[str]()

    def report_skipped(path: str, problem: Exception) -> None:
        # The whole storage is scanned for each page.
        if path not in reported:
            reported.add(path)
            write_problem(f"{printable_path(path)} is skipped: {problem}")

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
            # Not by its id alone: another server's record may be named otherwise.
            [upload] = await reader.uploads.load_each([upload_id])
            if isinstance(upload, Upload):
                limit -= 1
                yield upload
            elif not isinstance(upload, UploadNotFound | UploadGone):
                write_problem(f"{upload}")


@dataclass(frozen=True, slots=True)
class _Reversed:
    """An id that sorts in reverse order."""

    text: str

    def __lt__(self, other: _Reversed) -> bool:
        return self.text > other.text


async def _show(reader: _Reader, ids: tuple[str, ...], *, as_json: bool) -> int:
    missing = shown = 0
    for upload_id in ids:
        try:
            upload = await reader.uploads.load(upload_id)
            document = _document(reader.uploads, upload) | {"metadata": _metadata(upload)}
            if as_json:
                write_json(document)
            else:
                if shown:
                    write_line("")
                write_fields(document)
            shown += 1
        except UploadGone:
            missing += 1
            write_problem(f"{json.dumps(upload_id)} was removed")
        except UploadNotFound:
            missing += 1
            write_problem(f"there is no upload {json.dumps(upload_id)}")
        except StorageError as problem:
            missing += 1
            write_problem(f"{json.dumps(upload_id)}: {problem}")
    return 1 if missing else 0


async def _remove(settings: Settings, ids: tuple[str, ...], *, unreadable: bool) -> int:
    # Imported here, as the other actions do without.
    from tusd_py.service.connect import open_maintenance  # noqa: PLC0415

    failures = 0
    async with open_maintenance(settings, may_open=True) as maintenance:
        for upload_id in ids:
            problem = await maintenance.remove(upload_id, unreadable=unreadable)
            if problem is not None:
                failures += 1
                write_problem(f"{json.dumps(upload_id)}: {problem}")
    return 1 if failures else 0


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
    return name_of(uploads.state_of(upload), upload)


def _cells(uploads: Uploads, upload: Upload) -> tuple[str, ...]:
    age = format_age(time.time() - upload.changed_at)
    size = "-" if upload.length is None else str(upload.length)
    owner = printable(upload.info.owner) or "-"
    upload_id = printable(upload.id)
    return upload_id, _state(uploads, upload), str(upload.offset), size, age, owner


def _metadata(upload: Upload) -> dict[str, str]:
    return {key: value.decode("utf-8", "replace") for key, value in upload.info.metadata.items()}
