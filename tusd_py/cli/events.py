"""`tusd-py events`: lists undelivered and failed events, and retries or drops failed ones.

It reads and changes the outbox beside the uploads, whether a server runs or not. A job is queued for each upload with events
to retry; if Redis is unavailable, the next sweep queues it.
"""

from __future__ import annotations

import asyncio
import json
import time

import click

from tusd_py.cli.instance import NoRedis, check_directories, instance_redis
from tusd_py.cli.options import action, option, quiet_settings, subcommand
from tusd_py.cli.output import (
    Listing,
    count_of,
    format_age,
    format_time,
    write_line,
    write_problem,
)
from tusd_py.events import failed as failed_events
from tusd_py.events import outbox_record
from tusd_py.events.outbox_record import MalformedOutboxRecord, OutboxRecord
from tusd_py.service.backends import store_to_read
from tusd_py.service.owner import check_user
from tusd_py.settings.model import Settings
from tusd_py.storage.base import Box, KeptEvent, Outbox

ABOUT = """\
Print the events that wait for delivery to hooks (list) or that failed after too many attempts (failed); deliver failed ones
again (replay), or remove them (drop). An ID is that of an event, or of an upload, which selects all its events. Give it the
same options as the server. The server need not be running.

The exit code is 1 if nothing was found for an ID.
"""

_COLUMNS = {"EVENT": 32, "TYPE": 14, "UPLOAD": 32, "AGE": 6, "ATTEMPTS": 8, "PROBLEM": 0}


@subcommand("list | failed | replay ID... | drop ID... [--all] [--json] [options of serve]", ABOUT)
@action("list", "failed", "replay", "drop")
@click.argument("ids", nargs=-1)
@option("--all", "Replay or drop all failed events.", section="Events", name="every")
@option("--json", "Print one JSON object per line.", section="Events", name="as_json")
def command(action: str, ids: tuple[str, ...], every: bool, as_json: bool) -> int:
    """Run the action and return the exit code."""
    if action in ("list", "failed"):
        if ids or every:
            raise click.UsageError(f'unexpected argument "{ids[0] if ids else "--all"}"')
    elif bool(ids) == every:
        raise click.UsageError(f"give ids of events or uploads to {action}, or --all")
    settings = quiet_settings("warning")
    check_directories(settings)
    if action in ("replay", "drop"):
        check_user(settings, may_begin=False)
    return asyncio.run(_run(settings, action, None if every else ids, as_json=as_json))


async def _run(
    settings: Settings, action: str, ids: tuple[str, ...] | None, *, as_json: bool
) -> int:
    async with store_to_read(settings) as store:
        if action in ("list", "failed"):
            box: Box = "waiting" if action == "list" else "failed"
            return await _list(store.outbox, box, as_json=as_json)
        return await _change(settings, store.outbox, action, ids)


async def _list(outbox: Outbox, box: Box, *, as_json: bool) -> int:
    listing = Listing(_COLUMNS, cells=_cells, document=_document, as_json=as_json)
    async for kept in outbox.every(box):
        listing.write(kept)
    return 0


async def _change(
    settings: Settings, outbox: Outbox, action: str, ids: tuple[str, ...] | None
) -> int:
    """Replay or drop failed events of these ids, or all of them."""
    done: list[KeptEvent] = []
    failed, found = 0, set[str]()
    async for kept in outbox.every("failed"):
        if ids is not None and not {kept.event_id, kept.upload_id} & set(ids):
            continue
        found |= {kept.event_id, kept.upload_id}
        try:
            await (failed_events.replay if action == "replay" else failed_events.drop)(outbox, kept)
        except MalformedOutboxRecord as problem:
            failed += 1
            write_problem(f"{kept.event_id} cannot be delivered again: {problem}")
        else:
            done.append(kept)
    for missing in [each for each in ids or () if each not in found]:
        failed += 1
        write_problem(f"no failed event or upload has the id {json.dumps(missing)}")
    later = ""
    if action == "replay" and done and not _queue_jobs(settings, {each.upload_id for each in done}):
        later = "; the next sweep will find them"
    verb = "to be delivered again" if action == "replay" else "dropped"
    write_line(f"{count_of(len(done), 'event')} {verb}{later}")
    return 1 if failed else 0


def _queue_jobs(settings: Settings, upload_ids: set[str]) -> bool:
    """Queue a delivery job for each upload; return False if there is no Redis or it is unavailable."""
    # rq is not needed to list.
    from redis.exceptions import RedisError  # noqa: PLC0415

    from tusd_py.jobs.connection import connect  # noqa: PLC0415
    from tusd_py.jobs.delivery_queue import Deliveries  # noqa: PLC0415
    from tusd_py.redis.embedded.server import EmbeddedRedisError  # noqa: PLC0415

    try:
        with instance_redis(settings) as url, connect(url) as connection:
            Deliveries(connection, prefix=settings.redis_prefix).add(upload_ids)
    except (RedisError, EmbeddedRedisError, NoRedis):
        return False
    return True


def _read(kept: KeptEvent) -> OutboxRecord | str:
    """The record of an event, or why it cannot be read."""
    try:
        return outbox_record.parse(kept.content)
    except MalformedOutboxRecord as problem:
        return str(problem)


def _document(kept: KeptEvent) -> dict[str, object]:
    shown: dict[str, object] = {
        "id": kept.event_id,
        "upload": kept.upload_id,
        "kept": format_time(kept.kept_at),
    }
    record = _read(kept)
    if isinstance(record, str):
        return {**shown, "problem": record}
    return {
        **shown,
        "type": record.event.type.value,
        "hooks": list(record.hooks),
        "attempts": record.attempts,
        "next": format_time(record.not_before) if record.not_before else None,
        "problem": record.problem or None,
    }


def _cells(kept: KeptEvent) -> tuple[str, ...]:
    record = _read(kept)
    age = format_age(time.time() - kept.kept_at)
    if isinstance(record, str):
        return kept.event_id, "?", kept.upload_id, age, "?", record
    # The text comes from a hook and must not control the operator's terminal.
    problem = json.dumps(record.problem)[1:-1]
    event_type, attempts = record.event.type.value, str(record.attempts)
    return kept.event_id, event_type, kept.upload_id, age, attempts, problem
