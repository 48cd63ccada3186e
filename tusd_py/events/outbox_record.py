"""The record of an event in the outbox: the event without credentials, and the state of its delivery.

It is kept until all hooks were called. Not for: the place of the outbox (`storage/file/outbox.py`), the delivery
(`tusd_workers.delivery`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass, fields, replace

from tusd_py.events.model import DELIVERED, Event, EventType, RequestView, UploadView
from tusd_py.storage.base import UploadInfo

_SECRET = re.compile(
    r"auth|cookie|token|secret|passw|key|session|signature|credential|jwt|csrf|xsrf|assertion|referer"
)
"""Matches names of header fields that may contain credentials, which are not stored. A URL (Referer) may contain some."""
_UPLOAD = tuple(each.name for each in fields(UploadView))
_REQUEST = ("method", "path", "client", "headers", "collection_url")
"""What is stored of an upload and a request, under the names that hooks know. An older version reads no more of a request."""


class MalformedOutboxRecord(Exception):
    """A record cannot be parsed; the text says why."""


@dataclass(frozen=True, slots=True)
class OutboxRecord:
    """An event that workers deliver. event: without credentials.

    created_at: of its upload, to distinguish it from later uploads with the same id. hooks: names of the hooks that still have
    to be called. attempts: number of attempts begun. not_before: earliest time of the next attempt, in seconds since the epoch.
    problem: why the last attempt failed. happened: whether it is known to have happened, since an attempt was made; what tells
    of it, such as its upload, may be removed before the next one.
    """

    event: Event
    created_at: float
    hooks: tuple[str, ...]
    attempts: int = 0
    not_before: float = 0.0
    problem: str = ""
    happened: bool = False

    def next_attempt(self) -> OutboxRecord:
        """The record with one more attempt."""
        attempts = self.attempts + 1
        event = replace(self.event, attempt=attempts)
        return replace(self, attempts=attempts, event=event, happened=True)


def id_of(event_type: EventType, info: UploadInfo) -> str:
    """The id of an event that happens once to an upload; derived, so that every process computes the same."""
    text = f"{event_type}\0{info.id}\0{info.created_at!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def without_secrets(request: RequestView) -> RequestView:
    """The request without header fields that may contain credentials, and without the query, which may contain some."""
    return RequestView(
        method=request.method,
        path=request.path.partition("?")[0],
        client=request.client,
        headers={name: value for name, value in request.headers.items() if not is_secret(name)},
        collection_url=request.collection_url,
    )


def is_secret(header: str) -> bool:
    """Whether a header field of this name may contain a credential."""
    return _SECRET.search(header.lower()) is not None


def serialize(record: OutboxRecord) -> bytes:
    """Serialize to UTF-8 JSON."""
    event, upload, request = record.event, record.event.upload, record.event.request
    document = {
        "id": event.id,
        "type": event.type.value,
        "created_at": record.created_at,
        "upload": {
            **{name: getattr(upload, name) for name in _UPLOAD},
            "metadata": {key: b64encode(value).decode() for key, value in upload.metadata.items()},
        },
        "request": {
            **{name: getattr(request, name) for name in _REQUEST},
            "headers": dict(request.headers),
        },
        "hooks": record.hooks,
        "attempts": record.attempts,
        "not_before": record.not_before,
        "problem": record.problem,
        "happened": record.happened,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def parse(content: bytes) -> OutboxRecord:
    """Parse the output of `serialize`. Raises MalformedOutboxRecord."""
    try:
        document = json.loads(content)
        upload, attempts = document["upload"], document["attempts"]
        upload["metadata"] = {key: b64decode(each) for key, each in upload["metadata"].items()}
        upload["parts"] = tuple(upload["parts"])
        event = Event(
            type=EventType(document["type"]),
            # Records of 0.1.0 have neither path nor finished_at.
            upload=UploadView(**{name: upload[name] for name in _UPLOAD if name in upload}),
            request=RequestView(**document["request"]),
            id=document["id"],
            attempt=max(1, attempts),
        )
        record = OutboxRecord(
            event=event,
            created_at=document["created_at"],
            hooks=tuple(document["hooks"]),
            attempts=attempts,
            not_before=document["not_before"],
            problem=document["problem"],
            # Records of 0.1.0 do not tell.
            happened=bool(document.get("happened", attempts > 0)),
        )
        _check_values(record)
        return record
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as problem:
        raise MalformedOutboxRecord(f"it cannot be read: {problem!r}") from problem


def parse_if_any(content: bytes) -> OutboxRecord | None:
    """As `parse`; None if a power failure took the content, before the event happened. Raises MalformedOutboxRecord."""
    return parse(content) if content else None


def _check_values(record: OutboxRecord) -> None:
    """Raise ValueError for values of a wrong type or range, and for an event that is not delivered."""
    if record.event.type not in DELIVERED:
        raise ValueError(f"{record.event.type} is not delivered")
    counts = (record.attempts, record.event.attempt)
    if not all(type(each) is int and each >= 0 for each in counts):
        raise ValueError(f"attempts is {record.attempts!r:.100}")
    for name, seconds in (("not_before", record.not_before), ("created_at", record.created_at)):
        if type(seconds) not in (int, float) or not math.isfinite(seconds):
            raise ValueError(f"{name} is {seconds!r:.100}")
    texts = (*record.hooks, record.problem, record.event.id, record.event.upload.id)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text is expected in hooks, problem and ids")
