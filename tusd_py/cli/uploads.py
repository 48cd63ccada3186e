"""`tusd-py uploads`: lists, watches, shows and removes uploads.

Listing reads the storage without locks, whether a server runs or not. Removing needs the upload's lock, so a running server
that keeps its locks in memory is asked to do it, as for a sweep.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial

import click

from tusd_py.cli.instance import check_directories
from tusd_py.cli.options import (
    Value,
    action,
    coloured,
    one_word,
    option,
    quiet_settings,
    subcommand,
    whole,
)
from tusd_py.cli.output import (
    CommandFailed,
    Palette,
    Progress,
    format_time,
    write_problem,
    write_record,
)
from tusd_py.cli.upload_rows import SORTS, STATES, Row, Smallest, Wanted, watch, write_list
from tusd_py.service.backends import store_to_read
from tusd_py.service.instance import reader
from tusd_py.settings.model import Settings
from tusd_py.storage.base import (
    StorageError,
    Upload,
    UploadGone,
    UploadNotFound,
    batched_ids,
)
from tusd_py.storage.skipped import printable as printable_path
from tusd_py.uploads.model import name_of
from tusd_py.uploads.service import Uploads

ABOUT = """\
Print or remove uploads. Give it the same options as the server. The server need not be running.

list prints a page of uploads, the newest first. watch prints the same list again and again, with rates, until q is pressed.
show prints everything about the given uploads. rm removes them, finished or not, unless a client is writing to them or their
record cannot be read. The exit code is 1 if an ID was not found or could not be removed.

list reads the records of all uploads; with --sort id only those that it prints. With --server a running server does it, by its
operators' API (--admin), which takes no longer if there are many. Without --token-file this user must be able to read the
server's state directory.
"""

_PAGE = 100
_BATCH = 200


@subcommand("list | watch | show ID... | rm ID... [--json] [options of serve]", ABOUT)
@action("list", "watch", "show", "rm")
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
@option("--state", "List only uploads in this state.", section="Output", type=one_word(*STATES))
@option("--owner", "List only uploads of this owner.", section="Output", type=Value("OWNER"))
@option(
    "--sort",
    "Order of the list. With --server, newest or oldest.",
    section="Output",
    type=one_word(*SORTS),
    note="default newest",
)
@coloured
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
    owner: str | None,
    sort: str | None,
    color: str | None,
    search: str | None,
    as_json: bool,
) -> int:
    """Run the action and return the exit code."""
    if action in ("list", "watch") and ids:
        raise click.UsageError(f'unexpected argument "{ids[0]}"; {action} lists all')
    if action in ("show", "rm") and not ids:
        raise click.UsageError(f"give ids of uploads to {action}")
    settings = quiet_settings("warning")
    wanted = Wanted(limit or _PAGE, after or "", state, owner, sort or "newest", search or "")
    palette = Palette(color)
    if server is not None:
        # Imported here, as the usual way does without.
        from tusd_py.cli import operators  # noqa: PLC0415

        client = operators.connect(server, token_file, settings.state_dir)
        if action == "show":
            return operators.show(client, ids, as_json=as_json)
        if action == "rm":
            return operators.remove(client, ids)
        read = partial(operators.read_page, client)
    else:
        if token_file or search:
            raise click.UsageError("--token-file and --search need --server")
        if action == "rm":
            return asyncio.run(_remove(settings, ids, unreadable=unreadable))
        check_directories(settings)
        if action == "show":
            return asyncio.run(_show(settings, ids, as_json=as_json))
        read = partial(_read_page, settings)
    if action == "watch":
        return watch(lambda: read(wanted)[0], palette)
    rows, following = read(wanted)
    write_list(rows, palette, as_json=as_json)
    if following is not None:
        write_problem(f"continue with --after {following}")
    return 0


def _read_page(settings: Settings, wanted: Wanted) -> tuple[list[Row], str | None]:
    """Return a page of the list, and what the next page follows. Raises CommandFailed, StorageError."""
    rows = asyncio.run(_rows(settings, wanted))
    return rows, rows[-1].id if len(rows) == wanted.limit else None


async def _rows(settings: Settings, wanted: Wanted) -> list[Row]:
    async with store_to_read(settings) as store:
        uploads = reader(settings, store)
        if wanted.sort == "id":
            return [row async for row in _by_id(uploads, wanted)]
        key = SORTS[wanted.sort]
        after = key(await _last_row(uploads, wanted.after)) if wanted.after else None
        first = Smallest(wanted.limit, key, after=after)
        async for row in _all(uploads):
            if wanted.has(row):
                first.add(row)
        return first.found()


async def _last_row(uploads: Uploads, upload_id: str) -> Row:
    """The last upload of the previous page. Raises CommandFailed."""
    try:
        return _row(uploads, await uploads.load(upload_id))
    except StorageError:
        raise CommandFailed(
            f"--after {json.dumps(upload_id)}: there is no such upload any more; begin again without --after"
        ) from None


async def _all(uploads: Uploads) -> AsyncIterator[Row]:
    """Yield the rows of all uploads that can be read, and tell of the others."""
    progress = Progress("uploads read")
    async for batch in batched_ids(uploads.store.ids(_tell_skipped), _BATCH):
        for upload in await uploads.load_each(batch):
            if isinstance(upload, Upload):
                yield _row(uploads, upload)
            elif not isinstance(upload, UploadNotFound | UploadGone):
                progress.clear()
                write_problem(f"{upload}")
        progress.add(len(batch))
    progress.clear()


def _tell_skipped(path: str, problem: Exception) -> None:
    write_problem(f"{printable_path(path)} is skipped: {problem}")


async def _by_id(uploads: Uploads, wanted: Wanted) -> AsyncIterator[Row]:
    """Yield a page of uploads, ordered by id, holding no more than two pages of ids in memory."""
    reported = set[str]()

    def report_skipped(path: str, problem: Exception) -> None:
        # The whole storage is scanned for each page.
        if path not in reported:
            reported.add(path)
            _tell_skipped(path, problem)

    limit, after = wanted.limit, wanted.after
    while limit > 0:
        smallest: Smallest[str] = Smallest(limit, lambda upload_id: (upload_id,), after=(after,))
        async for upload_id in uploads.store.ids(report_skipped):
            smallest.add(upload_id)
        if not (ids := smallest.found()):
            return
        for upload_id in ids:
            after = upload_id
            # Not by its id alone: another server's record may be named otherwise.
            [upload] = await uploads.load_each([upload_id])
            if isinstance(upload, Upload):
                row = _row(uploads, upload)
                if wanted.has(row):
                    limit -= 1
                    yield row
            elif not isinstance(upload, UploadNotFound | UploadGone):
                write_problem(f"{upload}")


async def _show(settings: Settings, ids: tuple[str, ...], *, as_json: bool) -> int:
    missing = shown = 0
    async with store_to_read(settings) as store:
        uploads = reader(settings, store)
        for upload_id in ids:
            try:
                upload = await uploads.load(upload_id)
            except StorageError as problem:
                if isinstance(problem.__cause__, PermissionError):
                    raise
                missing += 1
                write_problem(_why_missing(upload_id, problem))
                continue
            document = _document(uploads, upload) | {"metadata": _metadata(upload)}
            write_record(document, as_json=as_json, is_first=not shown)
            shown += 1
    return 1 if missing else 0


def _why_missing(upload_id: str, problem: StorageError) -> str:
    name = json.dumps(upload_id)
    if isinstance(problem, UploadGone):
        return f"{name} was removed"
    if isinstance(problem, UploadNotFound):
        return f"there is no upload {name}"
    return f"{name}: {problem}"


async def _remove(settings: Settings, ids: tuple[str, ...], *, unreadable: bool) -> int:
    # Imported here, as the other actions do without.
    from tusd_py.service.connect import open_maintenance  # noqa: PLC0415

    failures = 0
    async with open_maintenance(
        settings, may_open=True, may_begin=False, sweeps=False
    ) as maintenance:
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
        "name": info.file_name,
        "created": format_time(info.created_at),
        "changed": format_time(upload.changed_at),
        "finished": None if info.finished_at is None else format_time(info.finished_at),
        "expires": None if expires is None else format_time(expires),
        "parts": list(info.parts),
        "path": info.finished_path or None,
    }


def _state(uploads: Uploads, upload: Upload) -> str:
    return name_of(uploads.state_of(upload), upload)


def _row(uploads: Uploads, upload: Upload) -> Row:
    info, document = upload.info, _document(uploads, upload)
    return Row(
        upload.id,
        _state(uploads, upload),
        upload.offset,
        upload.length,
        info.created_at,
        upload.changed_at,
        info.owner,
        info.file_name,
        document,
    )


def _metadata(upload: Upload) -> dict[str, str]:
    return {key: value.decode("utf-8", "replace") for key, value in upload.info.metadata.items()}
