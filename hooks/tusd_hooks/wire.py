"""tusd's format of hooks: the JSON document that tells of an event, and the document that answers it.

What is said here holds for every way in which an event leaves the process. Keys, their order and their types are those that
tusd writes (Go's), so that an endpoint or a script that was made for it needs no change; names in an answer count without
case, as they do there. How documents travel is the business of `http` and `files`.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tusd_py.events.model import (
    FIELD_NAME,
    FIELD_VALUE,
    Changes,
    Event,
    EventType,
    HookContext,
    HookFailed,
    HookResponse,
    Reject,
    Stop,
)
from tusd_py.protocol import errors
from tusd_py.settings.model import WIRE_EVENTS

_METADATA_KEY = re.compile(r"[!-+\--~]+")

_OF_THE_CONNECTION = frozenset(
    ("connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
)
"""Header fields that say how a message travels; they are never taken over from somebody else's message."""

_TEXT = {"Content-Type": "text/plain; charset=utf-8"}

_ANSWERED = frozenset(
    (
        EventType.PRE_CREATE,
        EventType.POST_RECEIVE,
        EventType.PRE_FINISH,
        EventType.PRE_TERMINATE,
        EventType.PRE_ACCESS,
    )
)
"""Events whose answer means something. Whatever is said to the others is not even looked at."""


class MalformedAnswer(HookFailed):
    """The answer is not what tusd's format allows."""


class WireHooks(ABC):
    """A hook that takes the events which `hooks_enabled_events` names, and tells them elsewhere.

    Until `start` it has functions for all events that it could take, afterwards for those that it does take: what is not
    enabled costs nothing and is not counted.
    """

    def __init__(self) -> None:
        self._listen(WIRE_EVENTS)

    def _listen(self, names: Iterable[str]) -> None:
        enabled = set(names)
        for name in WIRE_EVENTS:
            function = EventType(name).function
            if name in enabled:
                setattr(self, function, self.handle)
            else:
                vars(self).pop(function, None)

    async def start(self, context: HookContext) -> None:
        """Takes its settings. Raises HookFailed for what cannot work."""
        self._listen(context.settings.hooks_enabled_events)

    @abstractmethod
    async def handle(self, event: Event) -> Changes | None:
        """Tells an event; returns or raises what the answer means. Raises HookFailed."""


# --- the event ------------------------------------------------------------------------------------


def request_document(event: Event, upload_dir: Path) -> bytes:
    """What is told of an event, as JSON in UTF-8."""
    request = event.request
    document = {
        "Type": event.type.value,
        "Event": {
            "Upload": _upload(event, upload_dir),
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


def _upload(event: Event, upload_dir: Path) -> Mapping[str, object]:
    upload = event.upload
    is_created = event.type is not EventType.PRE_CREATE
    return {
        # Before its creation tusd knows no id, and endpoints tell by that.
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
        "Storage": {
            "InfoPath": f"{upload_dir}/{upload.id}.info",
            "Path": f"{upload_dir}/{upload.location or upload.id}",
            "Type": "filestore",
        }
        if is_created
        else None,
    }


def canonical(name: str) -> str:
    """The name of a header field as Go writes it: `x-request-id` is `X-Request-Id`."""
    return "-".join(part.capitalize() for part in name.split("-"))


def header_text(value: str) -> str:
    """The value of a header field, which arrives as Latin-1 whatever it is, as the UTF-8 that it most likely is."""
    if value.isascii():
        return value
    return value.encode("latin-1", "replace").decode("utf-8", "replace")


# --- the answer -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint or a script wants. status: None, body: "", id: "" and path: "" leave it to the server."""

    status: int | None = None
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    reject_upload: bool = False
    reject_termination: bool = False
    reject_access: bool = False
    stop_upload: bool = False
    id: str = ""
    metadata: Mapping[str, bytes] | None = None
    path: str = ""

    def refuses(self, event_type: EventType) -> bool:
        """Whether it says no to an event of this type. Each has a field of its own, and the others mean nothing to it."""
        return {
            EventType.PRE_CREATE: self.reject_upload,
            EventType.PRE_TERMINATE: self.reject_termination,
            EventType.PRE_ACCESS: self.reject_access,
            EventType.POST_RECEIVE: self.stop_upload,
        }.get(event_type, False)

    def outcome(self, event_type: EventType) -> Changes | None:
        """What it means for an event of this type. Raises Reject, Stop."""
        if self.refuses(event_type):
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
            response=response,
        )

    def _refusal(self, event_type: EventType) -> Reject | Stop:
        if event_type is EventType.PRE_ACCESS and self.status is None and not self.body:
            # What somebody may not touch looks like what is not there.
            unknown = errors.not_found()
            body, status = f"{unknown.code}: {unknown.message}\n", unknown.status
            return Reject(status, body, {**self.headers, **_TEXT}, code=unknown.code)
        status = self.status or 400
        if self.body:
            # Sent as it is: with a media type it is no text of ours.
            has_type = any(name.lower() == "content-type" for name in self.headers)
            body, headers = self.body, dict(self.headers) if has_type else {**self.headers, **_TEXT}
        else:
            body = _DEFAULT_BODIES[event_type]
            headers = {k: v for k, v in self.headers.items() if k.lower() != "content-type"}
        if event_type is EventType.POST_RECEIVE:
            return Stop(status, body, headers)
        return Reject(status, body, headers, code=_CODES[event_type])


_DEFAULT_BODIES = {
    EventType.PRE_CREATE: "the upload was rejected by the server",
    EventType.PRE_TERMINATE: "the termination of the upload was rejected by the server",
    EventType.PRE_ACCESS: "access to the upload was rejected by the server",
    EventType.POST_RECEIVE: "the upload was stopped by the server",
}

_CODES = {
    EventType.PRE_CREATE: "ERR_UPLOAD_REJECTED",
    EventType.PRE_TERMINATE: "ERR_UPLOAD_TERMINATION_REJECTED",
    EventType.PRE_ACCESS: "ERR_UPLOAD_REJECTED",
}


def counts(event_type: EventType) -> bool:
    """Whether the answer to an event of this type means anything."""
    return event_type in _ANSWERED


def parse_answer(raw: bytes, upload_dir: Path) -> Answer:
    """An answer, which is a JSON object with any of tusd's fields; `null` is a field that is left out, and what is unknown
    is ignored.

    A storage path may be absolute, as tusd's are; below `upload_dir` it becomes a relative one. Nothing is decided here about
    paths that lead elsewhere. Raises MalformedAnswer, whose text names the field.
    """
    document = _Object(_parsed(raw), "the answer")
    response = document.object("HTTPResponse")
    changes = document.object("ChangeFileInfo")
    storage = changes.texts("Storage") or {}
    return Answer(
        status=_status(response),
        body=response.text("Body"),
        headers=_headers(response),
        reject_upload=document.flag("RejectUpload"),
        reject_termination=document.flag("RejectTermination"),
        reject_access=document.flag("RejectAccess"),
        stop_upload=document.flag("StopUpload"),
        id=changes.text("ID"),
        metadata=_metadata(changes),
        path=_relative(storage.get("Path", ""), upload_dir),
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
    """A JSON object of an answer, whose fields are asked for by name and type. Each method raises MalformedAnswer."""

    def __init__(self, value: object, where: str) -> None:
        if value is not None and not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        self._where = where
        self._fields: list[tuple[str, object]] = list((value or {}).items())

    def path(self, name: str) -> str:
        """The field's name with those of the objects around it."""
        return name if self._where == "the answer" else f"{self._where}.{name}"

    def get(self, name: str) -> object:
        found = [value for key, value in self._fields if key.lower() == name.lower()]
        if len(found) > 1:
            raise MalformedAnswer(f"{self.path(name)} stands twice, in different spellings")
        return found[0] if found else None

    def object(self, name: str) -> _Object:
        return _Object(self.get(name), self.path(name))

    def text(self, name: str) -> str:
        return _text(self.get(name), self.path(name))

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise _wrong(self.path(name), "true or false", value)
        return bool(value)

    def whole(self, name: str) -> int:
        value = self.get(name)
        if value is not None and type(value) is not int:
            raise _wrong(self.path(name), "a whole number", value)
        return value or 0

    def texts(self, name: str) -> dict[str, str] | None:
        """An object whose names are free and whose values are texts."""
        value = self.get(name)
        if value is None:
            return None
        where = self.path(name)
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        return {_text(key, where): _text(each, f"{where}.{key!r}") for key, each in value.items()}


def _text(value: object, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(where, "text", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MalformedAnswer(f"{where} has half of a surrogate pair") from None
    return value


def _wrong(where: str, expected: str, value: object) -> MalformedAnswer:
    kinds = {bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return MalformedAnswer(f"{where} must be {expected}, not {kinds.get(type(value), 'a number')}")


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
        if name.lower() not in _OF_THE_CONNECTION:
            # Latin-1 is how bytes are carried to the wire, where this is UTF-8.
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
