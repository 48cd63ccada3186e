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
from datetime import UTC, datetime

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
_COLUMNS = ("FINGERPRINT", "STATE", "UPLOAD", "OWNER", "SINCE", "UNTIL")
_WIDTHS = (64, 8, 32, 12, 20, 20)

Found = AsyncIterator[tuple[str, Record]]


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
        index, output = DuplicateIndex(redis), _Output(as_json=hasattr(arguments, "json"))
        if arguments.action == "list":
            return await _list(index, output, limit)
        return await _named(index, arguments.names, output, forget=arguments.action == "forget")
    finally:
        await redis.stop()


async def _all(index: DuplicateIndex) -> Found:
    async for fingerprint, records in index.scan():
        for record in records:
            yield fingerprint, record


async def _list(index: DuplicateIndex, output: _Output, limit: int | None) -> int:
    async for fingerprint, record in _all(index):
        if limit is not None and output.count >= limit:
            break
        output.write(fingerprint, record)
    return 0


async def _named(
    index: DuplicateIndex, names: Iterable[str], output: _Output, *, forget: bool
) -> int:
    missing = 0
    for name in names:
        # All are found before one is forgotten: the pages of a scan do not like changes.
        found = [pair async for pair in _find(index, name)]
        for fingerprint, record in found:
            if forget:
                claim = record.claim
                await index.release(fingerprint, claim.upload, token=claim.token)
            output.write(fingerprint, record)
        if not found:
            missing += 1
            sys.stderr.write(f"tusd-py duplicates: nothing is remembered of {json.dumps(name)}\n")
    return 1 if missing else 0


async def _find(index: DuplicateIndex, name: str) -> Found:
    if _FINGERPRINT.fullmatch(name):
        for record in await index.records(name):
            yield name, record
        return
    async for fingerprint, record in _all(index):
        if record.claim.upload == name:
            yield fingerprint, record


class _Output:
    """Records as lines of JSON, or as a table. count: how many there were."""

    def __init__(self, *, as_json: bool) -> None:
        self.count = 0
        self._as_json = as_json

    def write(self, fingerprint: str, record: Record) -> None:
        """Prints one."""
        if self._as_json:
            sys.stdout.write(json.dumps(_document(fingerprint, record)) + "\n")
        else:
            if self.count == 0:
                _line(_COLUMNS)
            _line(_row(fingerprint, record))
        self.count += 1


def _document(fingerprint: str, record: Record) -> dict[str, object]:
    return {
        "fingerprint": fingerprint,
        "state": record.state,
        "upload": record.claim.upload,
        "owner": record.claim.owner,
        "created": _time(record.created),
        "completed": None if record.completed is None else _time(record.completed),
        "expires": _time(record.expires),
    }


def _row(fingerprint: str, record: Record) -> tuple[str, ...]:
    since = record.created if record.completed is None else record.completed
    owner = json.dumps(record.claim.owner)[1:-1] or "-"
    upload = record.claim.upload
    return fingerprint, record.state, upload, owner, _time(since), _time(record.expires)


def _line(row: tuple[str, ...]) -> None:
    cells = (f"{cell:{width}}" for cell, width in zip(row, _WIDTHS, strict=True))
    sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
