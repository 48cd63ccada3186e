"""`tusd-py duplicates`: lists and removes the fingerprints by which duplicates are refused.

It connects to the Redis of an instance, running or stopped, given by the settings of `tusd-py serve`. An embedded Redis is
started for the duration of the command.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable

import click

from tusd_py.cli.instance import instance_redis
from tusd_py.cli.options import action, option, quiet_settings, subcommand, whole
from tusd_py.cli.output import Listing, format_time, write_problem
from tusd_py.redis.duplicate_index import DuplicateIndex, Record
from tusd_py.service.backends import connected_redis

ABOUT = """\
Print or remove the fingerprints that the server remembers to detect duplicates. Give it the same options as the server, so
that it uses the same Redis. The server need not be running.

list prints every remembered upload. show prints those of a NAME. forget removes them: the next upload with that fingerprint
is created. A NAME is a fingerprint, found in the log and in the response to a refused upload, or an upload id; with an id,
only that upload is forgotten.

Uploads themselves are not changed. The exit code is 1 if a NAME was not found.
"""

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_COLUMNS = {"FINGERPRINT": 64, "STATE": 8, "UPLOAD": 32, "OWNER": 12, "SINCE": 20, "UNTIL": 20}

Item = tuple[str, Record]
"""A fingerprint, and one of the uploads that have it."""


@subcommand("list | show NAME... | forget NAME... [--json] [options of serve]", ABOUT)
@action("list", "show", "forget")
@click.argument("names", nargs=-1)
@option("--json", "Print one JSON object per line.", section="Output", name="as_json")
@option(
    "--limit",
    "Maximum number of entries that list prints.",
    section="Output",
    type=whole(0, 999_999_999),
)
def command(action: str, names: tuple[str, ...], as_json: bool, limit: int | None) -> int:
    """Run the action and return the exit code."""
    if action == "list" and names:
        raise click.UsageError(f'unexpected argument "{names[0]}"; list lists all')
    if action != "list" and not names:
        raise click.UsageError(f"give fingerprints or upload ids to {action}")
    # What fails is reported in a line of the command.
    settings = quiet_settings("error")
    listing = Listing(_COLUMNS, cells=_cells, document=_document, as_json=as_json)

    async def act(url: str) -> int:
        async with connected_redis(settings, url) as redis:
            index = DuplicateIndex(redis)
            if action == "list":
                return await _list(index, listing, limit)
            return await _named(index, names, listing, forget=action == "forget")

    with instance_redis(settings) as url:
        return asyncio.run(act(url))


async def _all(index: DuplicateIndex) -> AsyncIterator[Item]:
    async for fingerprint, records in index.scan():
        for record in records:
            yield fingerprint, record


async def _list(index: DuplicateIndex, listing: Listing[Item], limit: int | None) -> int:
    async for fingerprint, record in _all(index):
        if limit is not None and listing.count >= limit:
            break
        listing.write((fingerprint, record))
    return 0


async def _named(
    index: DuplicateIndex, names: Iterable[str], listing: Listing[Item], *, forget: bool
) -> int:
    missing = 0
    for name in names:
        # All are found before one is removed: a SCAN may miss keys that change meanwhile.
        found = [pair async for pair in _find(index, name)]
        for fingerprint, record in found:
            if forget:
                claim = record.claim
                await index.release(fingerprint, claim.upload, token=claim.token)
            listing.write((fingerprint, record))
        if not found:
            missing += 1
            write_problem(f"no fingerprint is stored for {json.dumps(name)}")
    return 1 if missing else 0


async def _find(index: DuplicateIndex, name: str) -> AsyncIterator[Item]:
    if _FINGERPRINT.fullmatch(name):
        for record in await index.records(name):
            yield name, record
        return
    async for fingerprint, record in _all(index):
        if record.claim.upload == name:
            yield fingerprint, record


def _document(item: Item) -> dict[str, object]:
    fingerprint, record = item
    return {
        "fingerprint": fingerprint,
        "state": record.state,
        "upload": record.claim.upload,
        "owner": record.claim.owner,
        "created": format_time(record.created),
        "completed": None if record.completed is None else format_time(record.completed),
        "expires": format_time(record.expires),
    }


def _cells(item: Item) -> tuple[str, ...]:
    fingerprint, record = item
    since = record.created if record.completed is None else record.completed
    owner = json.dumps(record.claim.owner)[1:-1] or "-"
    upload = record.claim.upload
    return fingerprint, record.state, upload, owner, format_time(since), format_time(record.expires)
