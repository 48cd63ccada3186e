"""What a hook sees and what it may decide: events, views of uploads and requests, changes, refusals.

A hook is a module, a class or an object with any of the functions that are named for events (`pre_create`, `post_finish`, …);
each takes one `Event`, and may be async. The `pre_` ones may refuse by raising `Reject`, and some may return `Changes`; a
`post_receive` may raise `Stop`. How they are called is in `hooks.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from numbers import Number
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from tusd_py.auth.principal import ANYBODY, Principal
from tusd_py.protocol.errors import ProtocolError
from tusd_py.telemetry.counters import Counters

if TYPE_CHECKING:
    from tusd_py.redis import RedisClient
    from tusd_py.settings.model import Settings
    from tusd_py.storage.base import UploadInfo

_PATH_CHARACTERS = "/~!$&'()*+,;=:@"


class EventType(StrEnum):
    """The events of an upload. Named as in tusd, except the last three."""

    PRE_CREATE = "pre-create"
    POST_CREATE = "post-create"
    POST_RECEIVE = "post-receive"
    PRE_FINISH = "pre-finish"
    POST_FINISH = "post-finish"
    PRE_TERMINATE = "pre-terminate"
    POST_TERMINATE = "post-terminate"
    PRE_ACCESS = "pre-access"
    POST_EXPIRE = "post-expire"
    CREATE_FAILED = "create-failed"

    @property
    def function(self) -> str:
        """The name of a hook's function for this event."""
        return self.value.replace("-", "_")


DELIVERED = frozenset(
    (
        EventType.POST_CREATE,
        EventType.POST_FINISH,
        EventType.POST_TERMINATE,
        EventType.POST_EXPIRE,
    )
)
"""Events that workers deliver to the operator's hooks, at least once, if there are workers."""


@dataclass(frozen=True, slots=True)
class UploadView:
    """An upload as hooks see it. length and offset in bytes; length is None while unknown.

    location: path of its bytes relative to the upload directory, if that is not the id. path: where the bytes are, an absolute
    path or `s3://bucket/key`; with `--finished-dir`, the path of a finished upload there. Empty before the creation.
    finished_at: seconds since the epoch; None while it is not finished.
    """

    id: str
    length: int | None
    offset: int
    metadata: Mapping[str, bytes]
    is_partial: bool = False
    is_final: bool = False
    parts: tuple[str, ...] = ()
    owner: str = ""
    location: str | None = None
    path: str = ""
    finished_at: float | None = None

    @classmethod
    def of(cls, info: UploadInfo, offset: int, path: str = "") -> UploadView:
        """The view of an upload; offset in bytes."""
        return cls(
            id=info.id,
            length=info.length,
            offset=offset,
            metadata=info.metadata,
            is_partial=info.is_partial,
            is_final=info.is_final,
            parts=info.parts,
            owner=info.owner,
            location=info.location,
            path=path,
            finished_at=info.finished_at,
        )


@dataclass(frozen=True, slots=True)
class RequestView:
    """The request that caused an event; empty for events caused by the server itself.

    path: with the query. client: `address:port`. headers: names in lower case. collection_url: the URL for creations as the
    client sees it, with a slash at the end. principal: the authenticated client.
    """

    method: str = ""
    path: str = ""
    client: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    collection_url: str = ""
    principal: Principal = ANYBODY

    def url_of(self, upload_id: str) -> str:
        """The URL of an upload as this client sees it."""
        return self.collection_url + quote(upload_id, safe=_PATH_CHARACTERS)


@dataclass(frozen=True, slots=True)
class Event:
    """An event of an upload. id: unique to the event, equal in every delivery. attempt: number of the delivery, from 1."""

    type: EventType
    upload: UploadView
    request: RequestView
    id: str = field(default_factory=lambda: os.urandom(16).hex())
    attempt: int = 1


FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FIELD_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
"""Valid names and values of header fields (RFC 9110, sections 5.1 and 5.5)."""


def _check_type(
    where: str, value: object, expected: type | tuple[type, ...], expected_name: str
) -> None:
    """Raise TypeError unless a value that a hook chose is None or has one of the types."""
    if value is not None and not isinstance(value, expected):
        raise TypeError(
            f"{where} must be {expected_name}, not {type(value).__name__} ({value!r:.80})"
        )


def _check_response(
    owner: str, status: object, headers: object, body: object, *, needs_status: bool = True
) -> None:
    """Check a response that a hook chose.

    Raises TypeError for a wrong type, and ValueError for an invalid status or header field (RFC 9110, sections 5.1, 5.5, 15).
    """
    if not isinstance(body, str):
        raise TypeError(f"the body of {owner} must be text (str), not {type(body).__name__}")
    if status is None and not needs_status:
        pass
    elif not isinstance(status, int):
        raise TypeError(
            f"the status of {owner} must be a whole number (int), not {type(status).__name__}"
        )
    elif not 200 <= status <= 599:
        raise ValueError(f"{status!r} is not the status of a response (200 to 599)")
    if not isinstance(headers, Mapping):
        raise TypeError(
            f"the headers of {owner} must be names and texts (dict), not {type(headers).__name__}"
        )
    for name, value in headers.items():
        if not isinstance(name, str) or FIELD_NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not the name of a header field")
        if not isinstance(value, str) or FIELD_VALUE.fullmatch(value) is None:
            raise ValueError(f"the header field {name} cannot have the value {value!r}")


@dataclass(frozen=True, slots=True)
class HookResponse:
    """Changes of a hook to the response of a successful request: another status, further header fields, a body (text).

    Raises ValueError for an invalid status or header field, and TypeError for a wrong type.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""

    def __post_init__(self) -> None:
        _check_response("a HookResponse", self.status, self.headers, self.body, needs_status=False)

    def then(self, later: HookResponse) -> HookResponse:
        """These changes, overridden by those of a later event of the same request."""
        theirs = {name.lower() for name in later.headers}
        ours = {name: value for name, value in self.headers.items() if name.lower() not in theirs}
        return HookResponse(
            self.status if later.status is None else later.status,
            {**ours, **later.headers},
            later.body or self.body,
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where in S3 the bytes of an upload shall be; empty texts leave the choice to the server.

    bucket: one of those that the operator allows. prefix: what the key begins with; the id follows. key: the whole key.
    """

    bucket: str = ""
    prefix: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        for name in ("bucket", "prefix", "key"):
            _check_type(f"{name} of Placement", getattr(self, name), str, "text (str)")


_TEXT, _SECONDS, _WHOLE = (
    (str, "text (str)"),
    (Number, "seconds (a number)"),
    (int, "a whole number"),
)
_TYPES_OF_CHANGES: Mapping[str, tuple[type, str]] = {
    "id": _TEXT,
    "metadata": (Mapping, "names and values (dict)"),
    "storage_path": _TEXT,
    "placement": (Placement, "a Placement"),
    "expire_after": _SECONDS,
    "retain": _SECONDS,
    "quota_bytes": _WHOLE,
    "quota_uploads": _WHOLE,
    "response": (HookResponse, "a HookResponse"),
}


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes by a `pre_create` hook; None for no change. `pre_finish` and `pre_terminate` may change the response only.

    storage_path: path for the bytes, relative to the upload directory or the object prefix. placement: where in S3 they shall
    be, instead of a storage_path. expire_after: seconds without a byte after which this upload expires; 0 for never. retain:
    seconds to keep it once it is finished; 0 for ever. quota_bytes: what all uploads of the owner may take. quota_uploads: how
    many of them may be unfinished. Both are in place of what its token or the settings say.

    Raises TypeError for a wrong type.
    """

    id: str | None = None
    metadata: Mapping[str, bytes] | None = None
    storage_path: str | None = None
    placement: Placement | None = None
    expire_after: float | None = None
    retain: float | None = None
    quota_bytes: int | None = None
    quota_uploads: int | None = None
    response: HookResponse | None = None

    def __post_init__(self) -> None:
        for name, (expected, expected_name) in _TYPES_OF_CHANGES.items():
            _check_type(f"{name} of Changes", getattr(self, name), expected, expected_name)
        pairs: Iterable[tuple[object, object]] = (self.metadata or {}).items()
        for key, value in pairs:
            if not isinstance(key, str) or not isinstance(value, bytes):
                raise TypeError(
                    f"metadata of Changes must be names (str) and values (bytes), not {key!r} and "
                    f"{type(value).__name__}"
                )

    def then(self, later: Changes) -> Changes:
        """These changes, overridden by those of a later hook."""
        chosen = {name: getattr(later, name) for name in _TYPES_OF_CHANGES}
        return replace(self, **{name: each for name, each in chosen.items() if each is not None})


class _ChosenResponse(Exception):
    """Ends a request with a response that a hook chose."""

    def __init__(self, status: int, body: str, headers: Mapping[str, str] | None) -> None:
        super().__init__(body)
        _check_response(f"a {type(self).__name__}", status, headers or {}, body)
        self.status = status
        self.body = body
        self.headers = dict(headers or {})


class Reject(_ChosenResponse):
    """Raised by a `pre_` hook to refuse the request with this response. code: for logs and metrics.

    Raises ValueError for an invalid status or header field, and TypeError for a wrong type.
    """

    def __init__(
        self,
        status: int = 400,
        body: str = "refused by the server",
        headers: Mapping[str, str] | None = None,
        *,
        code: str = "ERR_UPLOAD_REJECTED",
    ) -> None:
        super().__init__(status, body, headers)
        self.code = code


class Stop(_ChosenResponse):
    """Raised by a `post_receive` hook to end the running request with this response; the bytes that arrived are kept.

    Raises ValueError for an invalid status or header field, and TypeError for a wrong type.
    """

    def __init__(
        self,
        status: int = 400,
        body: str = "the upload was stopped by the server",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, body, headers)


class HookFailed(Exception):
    """Raised by a hook that failed in a known way. The text is logged, without a traceback."""


class HookCrashed(HookFailed):
    """A hook raised an unexpected exception, which is the cause."""


class HookError(Exception):
    """A hook cannot be loaded; the text says which and why."""


HookFunction = Callable[[Event], "Awaitable[Changes | None] | Changes | None"]


class Progress(NamedTuple):
    """How far an upload is.

    offset: in bytes. changed_at: when the last byte arrived, in seconds since the epoch. length: in bytes; None while unknown.
    is_held_elsewhere: a request at another process changes it, of which `changed_at` may not tell.
    """

    offset: int
    is_finished: bool
    changed_at: float
    length: int | None = None
    is_held_elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class HookContext:
    """The server that a hook runs in; passed to its `start`.

    progress_of: returns how far an upload is; None if there is none.
    """

    settings: Settings
    state: RedisClient | None
    progress_of: Callable[[str], Awaitable[Progress | None]]
    counters: Counters


class HookRefusal(ProtocolError):
    """A refusal that a hook decided on."""


class RefusedByHook(HookRefusal):
    """A refusal whose message is the exact body to send; the headers contain its Content-Type."""
