"""`tusd-py adopt`: takes over the uploads in a directory of tusd or tuspyserver, and gives them back.

A server on such a directory takes over each upload when it is requested. This command does so for all at once, and reports
those that it cannot take over. Each is taken over by a rename of a record that was synced before, so the command can be
killed and run again at any time.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from tusd_py.cli.options import Value, one_word, option, read_settings, subcommand
from tusd_py.cli.output import Progress, count_of, write_either
from tusd_py.locks.base import UNFENCED
from tusd_py.service.owner import check_upload_directory
from tusd_py.settings.suggestion import one_of
from tusd_py.storage.base import StorageError, Upload, is_random_id
from tusd_py.storage.file import foreign
from tusd_py.storage.file.layout import STATE_DIRECTORY
from tusd_py.storage.file.records import MALFORMED, read_record
from tusd_py.storage.file.store import FileStore
from tusd_py.storage.skipped import printable

ABOUT = """\
Take over the uploads of another server in DIR: finished and unfinished, partial and final ones, with their metadata and
expiry. Stop that server first. Data files stay in place; only the records beside them are rewritten, and bytes beyond those
acknowledged to the client are cut off. Uploads that cannot be trusted are listed with the reason and left unchanged. The
command can be run again; uploads that were taken over before are not changed.

Without DIR and with --s3-bucket it takes over what tusd has left in a bucket, and prints what it found of each upload. Give it
the server's options: tusd's -s3-object-prefix p is --s3-object-prefix p/ and --s3-info-prefix p/ here.

With --to tuspyserver it converts our records to those that tuspyserver reads. (tusd reads ours.)

The exit code is 0 if all uploads were taken over or given back, and 1 if some were left alone.
"""

Direction = Literal["taken over", "given back"]

_ORIGINS = ("tuspyserver", "tusd")
_EXPIRE_AFTER_SECONDS = 5 * 86_400.0
"""tuspyserver's default, for uploads without an expiry of their own."""


def _target(text: str) -> str:
    if text != "tuspyserver":
        raise ValueError("only tuspyserver needs its own records; tusd reads ours")
    return text


@subcommand(
    "DIR --from tuspyserver|tusd | DIR --to tuspyserver | --from tusd --s3-bucket NAME [--dry-run] [--json]",
    ABOUT,
    settings=("s3_bucket", "s3_endpoint", "s3_object_prefix", "s3_info_prefix"),
)
@click.argument("directory", default="", type=Value("DIR"))
@option(
    "--from",
    "Server whose uploads to take over: tuspyserver or tusd.",
    section="Adopt",
    type=one_word(*_ORIGINS, ask="give the server that stored the uploads,"),
    name="origin",
)
@option(
    "--to",
    "Server to give uploads back to: tuspyserver.",
    section="Adopt",
    type=Value("SERVER", _target),
    name="target",
)
@option(
    "--dry-run",
    "Change nothing; print what would be taken over and what would not.",
    section="Adopt",
)
@option(
    "--without-tails",
    "Do not count tusd's .part objects: give it if tusd was killed in the middle of requests, when a part before them may be "
    "missing. Clients send these bytes again, less than 5 MB an upload.",
    section="Adopt",
)
@option("--json", "Print one JSON object per line.", section="Adopt", name="as_json")
def command(  # noqa: PLR0917 - click passes them by name
    directory: str,
    origin: str | None,
    target: str | None,
    dry_run: bool,
    without_tails: bool,
    as_json: bool,
) -> int:
    """Take over or give back all uploads and return the exit code."""
    if not directory:
        return _adopt_bucket(
            origin, dry_run=dry_run, counts_tails=not without_tails, as_json=as_json
        )
    if origin is not None and target is not None:
        raise click.UsageError("give --from or --to, not both")
    if origin is None and target is None:
        raise click.UsageError(
            f"--from: give the server that stored the uploads, {one_of(_ORIGINS)}"
        )
    if not Path(directory).is_dir():
        raise click.UsageError(f"{json.dumps(directory)} is no directory")
    if not dry_run:
        check_upload_directory(Path(directory))
    summary = Summary("given back" if origin is None else "taken over", dry_run)
    return asyncio.run(_convert_all(FileStore(directory), origin, summary, as_json=as_json))


def _adopt_bucket(origin: str | None, *, dry_run: bool, counts_tails: bool, as_json: bool) -> int:
    settings = read_settings().settings
    if not settings.s3_bucket:
        raise click.UsageError(
            "give the directory of the uploads, or their bucket: --s3-bucket NAME"
        )
    if origin != "tusd":
        raise click.UsageError("buckets have uploads of tusd: give --from tusd")
    # Other commands do without it.
    from tusd_py.cli.adopt_bucket import adopt  # noqa: PLC0415

    return asyncio.run(adopt(settings, dry_run=dry_run, counts_tails=counts_tails, as_json=as_json))


@dataclass(slots=True)
class Summary:
    """Counts of uploads: finished and unfinished ones that were converted, done_before ones that needed nothing.

    cut: bytes beyond those acknowledged to clients.
    """

    direction: Direction
    dry_run: bool
    seen: int = 0
    finished: int = 0
    unfinished: int = 0
    cut: int = 0
    done_before: int = 0
    left_alone: int = 0

    def __str__(self) -> str:
        verb = f"would be {self.direction}" if self.dry_run else self.direction
        done = self.finished + self.unfinished
        cut = f" ({self.cut} unacknowledged bytes cut off)" if self.cut else ""
        whose = "ours" if self.direction == "taken over" else "theirs"
        return (
            f"{count_of(self.seen, 'upload')} seen: {done} {verb}, {self.finished} of them finished and "
            f"{self.unfinished} unfinished{cut}; {self.done_before} {whose} already; {self.left_alone} left alone"
        )

    def count(self, upload: Upload) -> None:
        """Count a converted upload."""
        self.finished += upload.finished
        self.unfinished += not upload.finished


async def _convert_all(
    store: FileStore, origin: str | None, summary: Summary, *, as_json: bool
) -> int:
    """Take over the uploads of another server, or give them back if there is no origin; return the exit code."""
    if not summary.dry_run:
        # Locks the directory: no other process may use it meanwhile.
        store.open()
    try:
        total = await asyncio.to_thread(lambda: sum(1 for _ in _names(store.root)))
        progress = Progress(total=total)

        def leave(name: str, problem: Exception) -> None:
            summary.left_alone += 1
            progress.clear()
            shown, reason = printable(name), str(problem).removeprefix(f"{name}: ")
            document = {"upload": shown, "left_alone": reason}
            write_either(document, f"left alone: {shown}: {reason}", as_json=as_json)

        async for upload_id in store.ids(leave):
            summary.seen += 1
            try:
                await _convert(store, upload_id, origin, summary)
            except Exception as problem:  # noqa: BLE001 - the edge of one upload, which must not cost the others theirs
                leave(upload_id, problem)
            progress.add(1)
        for name in await asyncio.to_thread(_without_record, store.root):
            summary.seen += 1
            leave(name, StorageError("there are bytes, but no record"))
    finally:
        if not summary.dry_run:
            store.close()
    progress.clear()
    write_either(asdict(summary), str(summary), as_json=as_json)
    return 1 if summary.left_alone else 0


async def _convert(store: FileStore, upload_id: str, origin: str | None, summary: Summary) -> None:
    """Convert the record of an upload and count it. Raises StorageError with the reason if it is left alone."""
    layout = await asyncio.to_thread(_layout, f"{store.root}/{upload_id}.info")
    if layout == ("tuspyserver" if origin is None else "ours"):
        summary.done_before += 1
        return
    if layout == "unknown":
        raise StorageError("its record is not one of an upload")
    if origin is not None and layout != origin:
        raise StorageError(f"it belongs to {layout}; adopt it with --from {layout}")
    upload = await store.load(upload_id)
    if origin is None:
        await _give_back(store, upload, dry_run=summary.dry_run)
    else:
        excess = await asyncio.to_thread(_excess, store, upload)
        if not summary.dry_run:
            upload = await store.adopt(upload, fence=UNFENCED)
        summary.cut += excess
    summary.count(upload)


async def _give_back(store: FileStore, upload: Upload, *, dry_run: bool) -> None:
    """Write the record that tuspyserver reads."""
    after = _EXPIRE_AFTER_SECONDS if upload.info.expire_after is None else upload.info.expire_after
    is_kept = (upload.finished and not upload.info.is_partial) or not after
    expires = None if is_kept else upload.changed_at + after
    content = foreign.as_tuspyservers(upload, expires=expires)
    if not dry_run:
        # A chunk whose checksum was not verified is discarded.
        recovered = await store.recover(upload, fence=UNFENCED)
        await store.give_back(recovered, content)


def _layout(path: str) -> foreign.Layout:
    try:
        return foreign.layout_of(json.loads(read_record(path)[0]))
    except (OSError, StorageError, *MALFORMED):
        return "unknown"


def _excess(store: FileStore, upload: Upload) -> int:
    """Return the number of bytes beyond the offset. Raises UploadUntrusted if the others are not what the client sent."""
    if upload.info.counted is None:
        return 0
    path = store.data_path(upload.info)
    foreign.check(upload, path)
    return os.stat(path).st_size - upload.offset


def _names(root: str) -> Iterator[str]:
    """Yield the paths of all records below a directory."""
    for directory, below, names in os.walk(root):
        if directory != root and STATE_DIRECTORY in below:
            below.clear()
            continue
        below[:] = [name for name in below if name not in (STATE_DIRECTORY, foreign.LOCKS)]
        for name in names:
            if name.endswith(".info"):
                yield os.path.join(directory, name)


def _without_record(root: str) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(
            entry.name
            for entry in entries
            # A name that both servers give to uploads.
            if is_random_id(entry.name)
            and entry.is_file(follow_symlinks=False)
            and not os.path.exists(f"{entry.path}.info")
        )
