"""Uploads as operators see them: pages of the list, a search, one upload with its timeline.

The list says which uploads there are and in what order; what is shown of each is loaded from the storage. Entries of uploads
that are gone or have changed are corrected on the way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import quote

from tusd_py.events import loading, outbox_record
from tusd_py.events.model import UploadView
from tusd_py.events.outbox_record import MalformedOutboxRecord
from tusd_py.protocol import errors
from tusd_py.redis.upload_list import Listed, Position, UploadList, id_of
from tusd_py.redis.upload_list import State as ListState
from tusd_py.service.instance import Instance
from tusd_py.storage.base import (
    BytesMissing,
    KeptEvent,
    StorageError,
    Upload,
    UploadDamaged,
    UploadGone,
    UploadInfo,
    UploadNotFound,
    is_valid_id,
)
from tusd_py.uploads.due_marks import listed
from tusd_py.uploads.failures import translated
from tusd_py.uploads.model import name_of
from tusd_py.web.admin import cursors, models

logger = logging.getLogger(__name__)

_Part = TypeVar("_Part")
_MOST_CANDIDATES = 500
"""Uploads that one request loads at most; the rest comes with its next page."""
_LONGEST = 1000
"""Characters of a text that are shown."""
_LIST_STATES: dict[models.Filter, ListState | None] = {
    "all": None,
    "unfinished": "unfinished",
    "finished": "finished",
    "part": "part",
}


class UploadQueries:
    """Reads the uploads of one instance."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._fingerprint = loading.fingerprints(instance.settings)

    @property
    def _names(self) -> bool:
        return self._instance.settings.admin_show_metadata

    @property
    def _list(self) -> UploadList:
        return needed(self._instance.upload_list)

    # Pages

    async def page(
        self,
        *,
        state: models.Filter,
        order: models.Order,
        search: str,
        owner: str | None,
        after: str | None,
        limit: int,
    ) -> models.UploadPage:
        """Return a page. Raises a ProtocolError for a cursor that is none, RedisUnavailable."""
        if owner is not None:
            return await self._found("o", f"{owner}\0", state, after, limit, owner=owner)
        if search:
            kinds = "ino" if self._names else "io"
            return await self._found(kinds, search, state, after, limit)
        return await self._listed(state, order, after, limit)

    async def _listed(
        self, state: models.Filter, order: models.Order, after: str | None, limit: int
    ) -> models.UploadPage:
        last = cursors.position(after)
        rows: list[models.UploadRow] = []
        seen = 0
        # Bounded, as all of many entries may be of uploads that are gone.
        while len(rows) < limit and seen < _MOST_CANDIDATES:
            wanted = limit - len(rows)
            found = await self._positions(state, order, last, wanted)
            shown = await self._rows([each.id for each in found], state)
            rows += shown
            seen += len(found)
            if found:
                last = found[-1]
            if len(found) < wanted:
                last = None
                break
        return models.UploadPage(
            uploads=rows,
            next=None if last is None else cursors.of([last.id, last.time]),
            total=await self._total(state),
            is_whole=await self._list.state() == b"whole",
        )

    async def _positions(
        self, state: models.Filter, order: models.Order, after: Position | None, limit: int
    ) -> list[Position]:
        if state != "expired":
            return await self._list.page(_LIST_STATES[state], order, after, limit)
        return await self._list.due(time.time(), after, limit)

    async def _total(self, state: models.Filter) -> int:
        if state != "expired":
            return await self._list.total(_LIST_STATES[state])
        return (await needed(self._instance.due_index).counts(time.time())).due

    async def _found(
        self,
        kinds: str,
        text: str,
        state: models.Filter,
        after: str | None,
        limit: int,
        *,
        owner: str | None = None,
    ) -> models.UploadPage:
        last = cursors.word(after)
        rows: dict[str, models.UploadRow] = {}
        if not last and owner is None and is_valid_id(text):
            # Also one that the list lacks.
            rows = {row.id: row for row in await self._rows([text], state)}
            # As if the list had been read up to its word, so that the next page goes on behind it.
            last = f"i{text}" if rows else last
        seen, is_more = 0, True
        while is_more and len(rows) < limit and seen < _MOST_CANDIDATES:
            wanted = limit - len(rows)
            words = await self._list.search(text, last, wanted, kinds=kinds)
            is_more = len(words) == wanted
            last = words[-1] if words else last
            seen += len(words)
            ids = [each for each in dict.fromkeys(map(id_of, words)) if each not in rows]
            for row in await self._rows(ids, state):
                if owner is None or row.owner == owner:
                    rows[row.id] = row
        return models.UploadPage(
            uploads=list(rows.values()),
            next=cursors.of([last]) if is_more else None,
            total=None,
            is_whole=await self._list.state() == b"whole",
        )

    async def _rows(self, ids: Sequence[str], state: models.Filter) -> list[models.UploadRow]:
        """Load uploads, in this order; leave those out that are gone, or in another state by now."""
        if not ids:
            return []
        rows: list[models.UploadRow] = []
        corrections: dict[str, Listed | None] = {}
        for upload_id, found in zip(ids, await self._instance.uploads.load_each(ids), strict=True):
            if isinstance(found, UploadNotFound | UploadGone):
                corrections[upload_id] = None
                continue
            row = self._row(upload_id, found)
            if _fits(row, state):
                rows.append(row)
            elif isinstance(found, Upload):
                corrections[upload_id] = listed(found, names=self._names)
        if corrections:
            await self._list.update(corrections)
        return rows

    def _row(self, upload_id: str, found: Upload | StorageError) -> models.UploadRow:
        if isinstance(found, Upload):
            fields = self._fields(found, None)
        elif isinstance(found, UploadDamaged | BytesMissing):
            fields = self._fields(found.upload, _problem_of(found))
        else:
            logger.warning("upload %s cannot be shown: %s", upload_id, found)
            nothing = Upload(UploadInfo(upload_id, None), 0, 0.0)
            fields = self._fields(nothing, "it cannot be read; the log has the reason")
            fields["state"] = "unreadable"
        return models.UploadRow.model_validate(fields)

    def _fields(self, upload: Upload, problem: str | None) -> dict[str, object]:
        uploads, info = self._instance.uploads, upload.info
        return {
            "id": info.id,
            "name": (info.file_name[:_LONGEST] or None) if self._names else None,
            "owner": info.owner,
            "state": name_of(uploads.state_of(upload), upload),
            "offset": upload.offset,
            "size": info.length,
            "created": info.created_at,
            "changed": upload.changed_at,
            "finished": info.finished_at,
            "expires": uploads.expiry.due_at(upload),
            "problem": problem,
        }

    # One upload

    @staticmethod
    def check_id(upload_id: str) -> None:
        """Raise a 404 for what cannot be the id of an upload."""
        if not is_valid_id(upload_id):
            raise errors.not_found()

    async def load(self, upload_id: str) -> Upload:
        """Return an upload, damaged or not. Raises ProtocolError: a 404, a 410, a 503."""
        return (await self._load(upload_id))[0]

    async def _load(self, upload_id: str) -> tuple[Upload, str | None]:
        """See `load`; also return what is wrong with it."""
        self.check_id(upload_id)
        with translated:
            try:
                return await self._instance.uploads.load(upload_id), None
            except (UploadDamaged, BytesMissing) as problem:
                return problem.upload, _problem_of(problem)

    async def detail(self, upload_id: str) -> models.UploadDetail:
        """Return everything about an upload. Raises ProtocolError."""
        upload, problem = await self._load(upload_id)
        info = upload.info
        events = await self.events_of(upload_id)
        fields = self._fields(upload, problem)
        authenticator = self._instance.authenticator
        metadata = {key: _text(value) for key, value in info.metadata.items()}
        return models.UploadDetail.model_validate(
            {
                **fields,
                "metadata": metadata if self._names else None,
                "is_partial": info.is_partial,
                "is_final": info.is_final,
                "parts": list(info.parts),
                "path": self._instance.settings.base_path + quote(info.id),
                "fingerprint": self.fingerprint(upload),
                "revoked": authenticator is not None
                and authenticator.revocations.has_upload(info.id),
                "timeline": _timeline(fields, events),
                "events": events,
            }
        )

    def fingerprint(self, upload: Upload) -> str | None:
        """Return the fingerprint by which duplicates of an upload are found."""
        return self._fingerprint(UploadView.of(upload.info, upload.offset))

    async def events_of(self, upload_id: str) -> list[models.Event]:
        """Return the events of an upload that are not delivered. Raises ProtocolError."""
        outbox = self._instance.outbox
        if outbox is None:
            return []
        with translated:
            return [
                event_of(kept, box)
                for box in (models.WAITING, models.FAILED)
                for kept in await outbox.of(upload_id, box)
            ]


def needed(part: _Part | None) -> _Part:
    """Return a part of the instance that is there where operators are served. Raises a 503 where it is not."""
    if part is None:
        raise errors.index_unavailable()
    return part


def _problem_of(problem: UploadDamaged | BytesMissing) -> str:
    if isinstance(problem, BytesMissing):
        return "its bytes are missing"
    return "its bytes contradict its record"


def event_of(kept: KeptEvent, box: models.Box) -> models.Event:
    """An event in the outbox as operators see it; one that cannot be read has no type."""
    event_type, attempts, hooks, following = None, 0, list[str](), None
    try:
        record = outbox_record.parse(kept.content)
    except MalformedOutboxRecord as malformed:
        problem: str | None = str(malformed)
    else:
        event_type, attempts, hooks = record.event.type.value, record.attempts, [*record.hooks]
        following, problem = record.not_before or None, record.problem or None
    return models.Event(
        id=kept.event_id,
        upload=kept.upload_id,
        type=event_type,
        kept=kept.kept_at,
        attempts=attempts,
        next=following,
        hooks=hooks,
        problem=None if problem is None else problem[:_LONGEST],
        box=box,
    )


def _timeline(fields: dict[str, object], events: Sequence[models.Event]) -> list[models.Moment]:
    named = (
        ("created", "created"),
        ("changed", "byte"),
        ("finished", "finished"),
        ("expires", "expires"),
    )
    moments = [
        models.Moment.model_validate({"at": fields[name], "what": what, "detail": None})
        for name, what in named
        if fields[name] is not None
    ]
    for event in events:
        attempts = f", {event.attempts} attempts" if event.attempts else ""
        moments.append(
            models.Moment(
                at=event.kept,
                what="event" if event.box == models.WAITING else "failed-event",
                detail=f"{event.type or event.id}{attempts}",
            )
        )
    return sorted(moments, key=lambda moment: moment.at)


def _fits(row: models.UploadRow, state: models.Filter) -> bool:
    if state == "all":
        return True
    if state == "unfinished":
        return row.finished is None
    if state == "expired":
        return row.state == "expired"
    # A part that is due is a part nevertheless.
    return row.finished is not None and row.state in (state, "expired")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")[:_LONGEST]
