"""`tusd-py duplicates`: which uploads are remembered, so that another of the same thing is refused, and how to forget one.

It looks into the Redis of an instance, running or stopped; where that is the embedded one it is started for as long as this
takes. The settings that lead there are those of `tusd-py serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterable

from tusd_py.cli.output import Listing, format_time
from tusd_py.cli.state import NoState, redis_of
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.duplicate_index import DuplicateIndex, Record
from tusd_py.redis.embedded.server import EmbeddedRedisError
from tusd_py.service.backends import redis_client
from tusd_py.settings.commandline import Parser, UsageError, suggestion
from tusd_py.settings.load import add_flags, load_arguments
from tusd_py.settings.model import Settings

USAGE = "list | show NAME... | forget NAME... [--json] [options of serve]"
ABOUT = """\
Print or forget what the server remembers of uploads in order to find duplicates. Give it the same options as the server, so \
that it looks into the same Redis; the server may run or not.

list prints every upload that is remembered, show those of a NAME, forget forgets them: the next of the same thing is \
created without a word. A NAME is a fingerprint, which stands in the log and in the answer to whoever was refused, or the id \
of an upload; by an id only that upload is forgotten.

Uploads themselves are not touched. The exit code is 1 if a NAME was not found.
"""

_ACTIONS = ("list", "show", "forget")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_COLUMNS = {"FINGERPRINT": 64, "STATE": 8, "UPLOAD": 32, "OWNER": 12, "SINCE": 20, "UNTIL": 20}

Item = tuple[str, Record]
"""A fingerprint, and one of the uploads that have it."""


def add_arguments(parser: Parser) -> None:
    """What to do, and all settings."""
    parser.add_argument("action", nargs="?", default="")
    parser.add_argument("names", nargs="*", default=[])
    parser.option("--json", "Print a JSON object a line.", section="Output", action="store_true")
    parser.option(
        "--limit",
        "Print no more than so many with list.",
        section="Output",
        metavar="NUMBER",
    )
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print or forget; returns the exit code."""
    _check(arguments.action, arguments.names)
    limit = _limit(getattr(arguments, "limit", None))
    loaded = load_arguments(arguments, os.environ)
    try:
        with redis_of(loaded.settings) as url:
            return asyncio.run(_act(url, loaded.settings, arguments, limit))
    except (RedisUnavailable, EmbeddedRedisError, NoState) as problem:
        sys.stderr.write(f"tusd-py duplicates: {problem}\n")
        return 1


def _check(action: str, names: list[str]) -> None:
    if action not in _ACTIONS:
        given = f'"{action}" is no action' if action else "no action was given"
        raise UsageError(f"{given}; give list, show or forget{suggestion(action, _ACTIONS)}")
    if action == "list" and names:
        raise UsageError(f'unexpected argument "{names[0]}"; list lists all')
    if action != "list" and not names:
        raise UsageError(f"give fingerprints or upload ids to {action}")


def _limit(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError(f"--limit {json.dumps(text)}: give a whole number")
    return int(text)


async def _act(
    url: str, settings: Settings, arguments: argparse.Namespace, limit: int | None
) -> int:
    redis = redis_client(settings, url)
    await redis.start()
    try:
        index = DuplicateIndex(redis)
        listing = Listing(
            _COLUMNS, cells=_cells, document=_document, as_json=hasattr(arguments, "json")
        )
        if arguments.action == "list":
            return await _list(index, listing, limit)
        return await _named(index, arguments.names, listing, forget=arguments.action == "forget")
    finally:
        await redis.stop()


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
        # All are found before one is forgotten: the pages of a scan do not like changes.
        found = [pair async for pair in _find(index, name)]
        for fingerprint, record in found:
            if forget:
                claim = record.claim
                await index.release(fingerprint, claim.upload, token=claim.token)
            listing.write((fingerprint, record))
        if not found:
            missing += 1
            sys.stderr.write(f"tusd-py duplicates: nothing is remembered of {json.dumps(name)}\n")
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
