"""tusd's hook format: the JSON document of an event, and the document that answers it.

Keys, their order and their types are tusd's, so that existing endpoints and scripts work unchanged; names in answers are
case-insensitive, as in Go. `http` and `files` transport the documents.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from tusd_py.events.model import (
    FIELD_NAME,
    FIELD_VALUE,
    Changes,
    Event,
    EventType,
    HookContext,
    HookFailed,
    HookResponse,
    Placement,
    Reject,
    Stop,
    UploadView,
)
from tusd_py.protocol import errors
from tusd_py.settings.model import Settings
from tusd_py.settings.types import WIRE_EVENTS
from tusd_py.storage.s3.layout import Layout

T = TypeVar("T")

_METADATA_KEY = re.compile(r"[!-+\--~]+")

OF_THE_CONNECTION = frozenset(
    ("connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
)
"""Header fields about the transport of a message, which are never copied from another message."""

_SHOWN = 200
"""Bytes of an unexpected output to log."""

_TEXT = {"Content-Type": "text/plain; charset=utf-8"}

_REFUSALS: Mapping[EventType, tuple[str, str, str]] = {
    EventType.PRE_CREATE: ("RejectUpload", "ERR_UPLOAD_REJECTED", "the upload was rejected"),
    EventType.PRE_TERMINATE: (
        "RejectTermination",
        "ERR_UPLOAD_TERMINATION_REJECTED",
        "the termination of the upload was rejected",
    ),
    EventType.PRE_ACCESS: (
        "RejectAccess",
        "ERR_UPLOAD_REJECTED",
        "access to the upload was rejected",
    ),
    EventType.POST_RECEIVE: ("StopUpload", "", "the upload was stopped"),
}
"""For each event that can be refused: the field of the answer that does so, the code for the log, and the default text."""

ANSWERED = frozenset((*_REFUSALS, EventType.PRE_FINISH))
"""Events whose answer has an effect. Answers to others are ignored."""


class MalformedAnswer(HookFailed):
    """An answer that violates tusd's format."""


class WireHooks(ABC):
    """A hook that forwards the events listed in `hooks_enabled_events`.

    Until `start` it has methods for all events that it supports, afterwards only for enabled ones: others cost nothing and are
    not counted.
    """

    def __init__(self) -> None:
        self._listen(WIRE_EVENTS)

    async def start(self, context: HookContext) -> None:
        """Read the settings. Raises HookFailed if they cannot work."""
        self._settings = context.settings
        self._listen(context.settings.hooks_enabled_events)

    def _listen(self, enabled: Collection[str]) -> None:
        for name in WIRE_EVENTS:
            function = EventType(name).function
            if name in enabled:
                setattr(self, function, self.handle)
            else:
                vars(self).pop(function, None)

    @abstractmethod
    async def handle(self, event: Event) -> Changes | None:
        """Send an event. Return or raise the meaning of the answer. Raises HookFailed."""


# --- the event ------------------------------------------------------------------------------------


def request_document(event: Event, settings: Settings) -> bytes:
    """Serialize an event to UTF-8 JSON."""
    request = event.request
    document = {
        "Type": event.type.value,
        "Event": {
            "Upload": _upload(event, settings),
            "HTTPRequest": {
                "Method": request.method,
                "URI": request.path,
                "RemoteAddr": request.client,
                "Header": {
                    canonical(name): [header_text(value)]
                    for name, value in sorted(request.headers.items())
                },
            },
        },
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _upload(event: Event, settings: Settings) -> Mapping[str, object]:
    upload = event.upload
    is_created = event.type is not EventType.PRE_CREATE
    return {
        # tusd has no id before the creation, and endpoints rely on that.
        "ID": upload.id if is_created else "",
        "Size": upload.length or 0,
        "SizeIsDeferred": upload.length is None,
        "Offset": upload.offset,
        "MetaData": {
            key: value.decode("utf-8", "replace") for key, value in sorted(upload.metadata.items())
        },
        "IsPartial": upload.is_partial,
        "IsFinal": upload.is_final,
        "PartialUploads": list(upload.parts) or None,
        "Storage": _storage(upload, settings) if is_created else None,
    }


def _storage(upload: UploadView, settings: Settings) -> Mapping[str, str]:
    """Where the bytes of an upload are: in a directory, or in a bucket."""
    location = upload.location or upload.id
    if settings.s3_bucket:
        return Layout(settings.s3_object_prefix).storage(location, bucket=settings.s3_bucket)
    return {
        "InfoPath": f"{settings.upload_dir}/{upload.id}.info",
        "Path": upload.path or f"{settings.upload_dir}/{location}",
        "Type": "filestore",
    }


def canonical(name: str) -> str:
    """Write the name of a header field as Go does: `x-request-id` becomes `X-Request-Id`."""
    return "-".join(part.capitalize() for part in name.split("-"))


def header_text(value: str) -> str:
    """Decode the value of a header field, which arrives as Latin-1, as UTF-8 if possible."""
    if value.isascii():
        return value
    return value.encode("latin-1", "replace").decode("utf-8", "replace")


def excerpt(output: bytes) -> str:
    """Return the beginning of an unexpected output, for the log; empty if there is none."""
    begins = output[:_SHOWN].decode("utf-8", "replace")
    return f": {begins!r}" if begins else ""


# --- the answer -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer. status None and an empty body, id or path leave the choice to the server. refuses: these types of events."""

    status: int | None = None
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    refuses: Collection[EventType] = frozenset()
    id: str = ""
    metadata: Mapping[str, bytes] | None = None
    path: str = ""
    placement: Placement | None = None

    def outcome(self, event_type: EventType) -> Changes | None:
        """Interpret the answer for an event of this type. Raises Reject, Stop."""
        if event_type in self.refuses:
            raise self._refusal(event_type)
        if event_type not in (EventType.PRE_CREATE, EventType.PRE_FINISH):
            return None
        response = None
        if self.status is not None or self.body or self.headers:
            response = HookResponse(self.status, self.headers, self.body)
        if event_type is EventType.PRE_FINISH:
            return Changes(response=response)
        return Changes(
            id=self.id or None,
            metadata=self.metadata,
            storage_path=self.path or None,
            placement=self.placement,
            response=response,
        )

    def _refusal(self, event_type: EventType) -> Reject | Stop:
        if event_type is EventType.PRE_ACCESS and self.status is None and not self.body:
            # An inaccessible upload looks like one that does not exist.
            unknown = errors.not_found()
            body, status = f"{unknown.code}: {unknown.message}\n", unknown.status
            return Reject(status, body, {**self.headers, **_TEXT}, code=unknown.code)
        _, code, default = _REFUSALS[event_type]
        status = self.status or 400
        if self.body:
            # Sent unchanged, with the media type of the answer if it has one.
            has_type = any(name.lower() == "content-type" for name in self.headers)
            body, headers = self.body, dict(self.headers) if has_type else {**self.headers, **_TEXT}
        else:
            body = f"{default} by the server"
            headers = {k: v for k, v in self.headers.items() if k.lower() != "content-type"}
        if event_type is EventType.POST_RECEIVE:
            return Stop(status, body, headers)
        return Reject(status, body, headers, code=code)


def parse_answer(raw: bytes, upload_dir: Path) -> Answer:
    """Parse an answer: a JSON object with any of tusd's fields. `null` counts as absent, and unknown fields are ignored.

    A storage path may be absolute, as tusd's are; below `upload_dir` it becomes relative. Paths elsewhere are not judged here.
    Raises MalformedAnswer, whose text names the field.
    """
    document = _Object(_parsed(raw), "the answer")
    response = document.object("HTTPResponse")
    changes = document.object("ChangeFileInfo")
    storage = changes.object("Storage")
    places = {name: storage.text(name.capitalize()) for name in ("bucket", "prefix", "key")}
    return Answer(
        status=_status(response),
        body=response.text("Body"),
        headers=_headers(response),
        # All of them are looked at, as each may be malformed.
        refuses=frozenset([each for each, (name, *_) in _REFUSALS.items() if document.flag(name)]),
        id=changes.text("ID"),
        metadata=_metadata(changes),
        path=_relative(storage.text("Path"), upload_dir),
        placement=Placement(**places) if any(places.values()) else None,
    )


def _relative(path: str, upload_dir: Path) -> str:
    if not path:
        return ""
    given = PurePosixPath(path)
    return str(given.relative_to(upload_dir) if given.is_relative_to(upload_dir) else given)


def _parsed(raw: bytes) -> object:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise MalformedAnswer(f"the answer is not UTF-8: {problem.reason}") from None
    if not text.strip():
        raise MalformedAnswer("the answer is empty; {} is the least there can be")
    try:
        value: object = json.loads(
            text, object_pairs_hook=_without_repeats, parse_constant=_no_constant
        )
    except MalformedAnswer:
        raise
    except (ValueError, RecursionError) as problem:
        raise MalformedAnswer(f"the answer is not JSON: {problem}") from None
    return value


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MalformedAnswer("the answer has a name twice in one object")
    return found


def _no_constant(name: str) -> object:
    raise MalformedAnswer(f"the answer is not JSON: {name} is no number there")


class _Object:
    """A JSON object of an answer, with typed access to its fields. Every method raises MalformedAnswer."""

    def __init__(self, value: object, where: str) -> None:
        self._where = where
        self._fields: dict[str, object] = _checked(value, dict, where) or {}

    def path(self, name: str) -> str:
        """Return the field's name, qualified by the enclosing objects."""
        return name if self._where == "the answer" else f"{self._where}.{name}"

    def get(self, name: str) -> object:
        found = [value for key, value in self._fields.items() if key.lower() == name.lower()]
        if len(found) > 1:
            raise MalformedAnswer(f"{self.path(name)} stands twice, in different spellings")
        return found[0] if found else None

    def object(self, name: str) -> _Object:
        return _Object(self.get(name), self.path(name))

    def text(self, name: str) -> str:
        return _text(self.get(name), self.path(name))

    def flag(self, name: str) -> bool:
        return bool(_checked(self.get(name), bool, self.path(name)))

    def whole(self, name: str) -> int:
        return _checked(self.get(name), int, self.path(name)) or 0

    def texts(self, name: str) -> dict[str, str] | None:
        """Return an object with arbitrary names and string values."""
        where = self.path(name)
        value = _checked(self.get(name), dict, where)
        if value is None:
            return None
        return {_text(key, where): _text(each, f"{where}.{key!r}") for key, each in value.items()}


def _text(value: object, where: str) -> str:
    text = _checked(value, str, where) or ""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MalformedAnswer(f"{where} has half of a surrogate pair") from None
    return text


_KINDS = {bool: "true or false", str: "text", list: "a list", dict: "an object"}


def _checked(value: object, kind: type[T], where: str) -> T | None:
    """Return a value of this kind, or None for `null`. Raises MalformedAnswer."""
    # True is an instance of int, too.
    if value is None or (isinstance(value, kind) and isinstance(value, bool) == (kind is bool)):
        return value
    expected, given = _KINDS.get(kind, "a whole number"), _KINDS.get(type(value), "a number")
    raise MalformedAnswer(f"{where} must be {expected}, not {given}")


def _status(response: _Object) -> int | None:
    status = response.whole("StatusCode")
    if status and not 200 <= status <= 599:
        raise MalformedAnswer(f"HTTPResponse.StatusCode must be from 200 to 599, not {status}")
    return status or None


def _headers(response: _Object) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in (response.texts("Header") or {}).items():
        if not FIELD_NAME.fullmatch(name):
            raise MalformedAnswer(f"HTTPResponse.Header has {name!r}, which cannot name a header")
        if not FIELD_VALUE.fullmatch(value):
            raise MalformedAnswer(f"HTTPResponse.Header.{name} has control characters")
        if name.lower() not in OF_THE_CONNECTION:
            # ASGI sends Latin-1, so UTF-8 is passed through as such.
            headers[canonical(name.lower())] = value.encode().decode("latin-1")
    return headers


def _metadata(changes: _Object) -> dict[str, bytes] | None:
    given = changes.texts("MetaData")
    if given is None:
        return None
    for key in given:
        if not _METADATA_KEY.fullmatch(key):
            raise MalformedAnswer(
                f"ChangeFileInfo.MetaData has the key {key!r}; keys are visible ASCII without commas"
            )
    return {key: value.encode() for key, value in given.items()}
