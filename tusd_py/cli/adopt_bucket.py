"""`tusd-py adopt --from tusd --s3-bucket NAME`: takes over the uploads that tusd has left in a bucket."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tusd_py.cli.output import CommandFailed, Listing, count_of, printable, write_either
from tusd_py.locks.base import UNFENCED, LeaseLost
from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError, batched_ids

if TYPE_CHECKING:
    from tusd_py.storage.s3.takeover import Found

_AT_ONCE = 16
_COLUMNS = {"UPLOAD": 40, "STATE": 10, "OFFSET": 14, "SIZE": 14, "NOTE": 0}


@dataclass(frozen=True, slots=True)
class Row:
    """What was found of one upload. state: finished, unfinished, ours or left alone."""

    upload: str
    state: str
    offset: int | None = None
    size: int | None = None
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """As a row of a table."""
        numbers = ("-" if number is None else str(number) for number in (self.offset, self.size))
        return (printable(self.upload), self.state, *numbers, printable(self.note))


@dataclass(slots=True)
class Summary:
    """Counts of uploads. bytes: those of unfinished uploads that count. ours: uploads that needed nothing."""

    dry_run: bool
    seen: int = 0
    finished: int = 0
    unfinished: int = 0
    bytes: int = 0
    ours: int = 0
    left_alone: int = 0

    def count(self, row: Row) -> None:
        """Count what was found."""
        self.seen += 1
        if row.state == "finished":
            self.finished += 1
        elif row.state == "unfinished":
            self.unfinished += 1
            self.bytes += row.offset or 0
        elif row.state == "ours":
            self.ours += 1
        else:
            self.left_alone += 1

    def __str__(self) -> str:
        verb = "would be taken over" if self.dry_run else "taken over"
        return (
            f"{count_of(self.seen, 'upload')} seen: {self.finished + self.unfinished} {verb}, "
            f"{self.finished} of them finished and "
            f"{self.unfinished} unfinished ({self.bytes} bytes); {self.ours} ours already; {self.left_alone} left alone"
        )


async def adopt(settings: Settings, *, dry_run: bool, counts_tails: bool, as_json: bool) -> int:
    """Take over all of tusd's uploads in the bucket and return the exit code."""
    # Need an extra, and load a large library.
    from tusd_py.service.bucket import s3_store  # noqa: PLC0415
    from tusd_py.storage.s3.object_store import ObjectStoreError  # noqa: PLC0415

    store = s3_store(settings)
    takeover = store.takeover(counts_tails=counts_tails)
    summary = Summary(dry_run)
    listing = Listing(_COLUMNS, cells=Row.cells, document=asdict, as_json=as_json)

    async def look_at(name: str) -> Row:
        """What there is under the name of a record, taken over."""
        upload_id = name
        try:
            upload_id = await takeover.owner(name) or name
            found = await takeover.find(upload_id) if upload_id != name else None
            if found is None or await store.is_recorded(upload_id):
                if found is not None and not dry_run:
                    await takeover.forget(upload_id)
                return Row(upload_id, "ours")
            if not dry_run:
                await takeover.adopt(found, UNFENCED)
            return _row(found)
        except (StorageError, ObjectStoreError, LeaseLost) as problem:
            return Row(upload_id, "left alone", note=str(problem).removeprefix(f"{upload_id}: "))

    try:
        async for names in batched_ids(store.ids(), _AT_ONCE):
            for row in await asyncio.gather(*map(look_at, names)):
                summary.count(row)
                if row.state != "ours":
                    listing.write(row)
    except StorageError as problem:
        raise CommandFailed(str(problem)) from problem
    finally:
        await store.stop()
    write_either(asdict(summary), str(summary), as_json=as_json)
    return 1 if summary.left_alone else 0


def _row(found: Found) -> Row:
    info = found.record.info
    note = ""
    if found.behind_gap:
        numbers = ", ".join(map(str, found.behind_gap[:5]))
        more = ", …" if len(found.behind_gap) > 5 else ""
        missing = len(found.progress.parts) + 1
        note = f"part {missing} is missing, so that those behind it do not count: {numbers}{more}"
    state = "unfinished" if info.finished_at is None else "finished"
    return Row(info.id, state, found.progress.offset, info.length, note)
