"""What a hook sees and what it may decide: events, views of uploads and requests, changes, refusals.

A hook is a module, a class or an object with any of the functions that are named for events (`pre_create`, `post_finish`, …);
each takes one `Event`, and may be async. The `pre_` ones may refuse by raising `Reject`, and some may return `Changes`; a
`post_receive` may raise `Stop`. How they are called is in `hooks.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import quote

from tusd_py.auth.principal import ANYBODY, Principal
from tusd_py.metrics.counters import Counters
from tusd_py.protocol.errors import ProtocolError

if TYPE_CHECKING:
    from tusd_py.redis import RedisClient
    from tusd_py.settings.model import Settings
    from tusd_py.storage.base import UploadInfo

_PATH_CHARACTERS = "/~!$&'()*+,;=:@"


class EventType(StrEnum):
    """The moments of an upload's life. Named as in tusd, except the last three, which are ours."""

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
        """The name of the function that a hook has for it."""
        return self.value.replace("-", "_")


DELIVERED = frozenset(
    (
        EventType.POST_CREATE,
        EventType.POST_FINISH,
        EventType.POST_TERMINATE,
        EventType.POST_EXPIRE,
    )
)
"""Events that workers tell the operator's hooks of, at least once, where delivery is their business."""


@dataclass(frozen=True, slots=True)
class UploadView:
    """An upload as hooks see it. length and offset in bytes; length is None while unknown.

    location: where its bytes lie, relative to the upload directory, if that is not its id.
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

    @classmethod
    def of(cls, info: UploadInfo, offset: int) -> UploadView:
        """The view of an upload with this record and this offset, in bytes."""
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
        )


@dataclass(frozen=True, slots=True)
class RequestView:
    """The request that led to an event; empty for what the server did by itself.

    path: with the query. client: `address:port`. headers: names in lower case. collection_url: where uploads are created, as
    the client sees it, with a slash at the end. principal: who sent it, as far as that is asked.
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
    """Something that happens to an upload. id is unique to the event, however often it is told.

    attempt: which attempt to tell it this is, from 1; more only where workers deliver it.
    """

    type: EventType
    upload: UploadView
    request: RequestView
    id: str = field(default_factory=lambda: os.urandom(16).hex())
    attempt: int = 1


FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FIELD_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
"""What a header field of a response may be (RFC 9110, sections 5.1 and 5.5)."""


def _check_response(status: int | None, fields: Iterable[tuple[object, object]]) -> None:
    """Raises ValueError for what no response can have (RFC 9110, sections 5.1, 5.5 and 15)."""
    if status is not None and not 200 <= status <= 599:
        raise ValueError(f"{status!r} is not the status of a response (200 to 599)")
    for name, value in fields:
        if not isinstance(name, str) or FIELD_NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not the name of a header field")
        if not isinstance(value, str) or FIELD_VALUE.fullmatch(value) is None:
            raise ValueError(f"the header field {name} cannot have the value {value!r}")


@dataclass(frozen=True, slots=True)
class HookResponse:
    """What a hook makes of the response to a success: another status, further header fields, a body.

    Raises ValueError for a status and for header fields that no response can have.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""

    def __post_init__(self) -> None:
        _check_response(self.status, self.headers.items())


@dataclass(frozen=True, slots=True)
class Changes:
    """What a `pre_create` hook may change; None leaves it as it is. `pre_finish` and `pre_terminate` may set the response.

    storage_path: where the bytes are to lie, relative to the upload directory. expire_after: seconds without a byte, for this
    upload; 0 for never. retain: seconds for which it is kept once it is finished; 0 for ever.
    """

    id: str | None = None
    metadata: Mapping[str, bytes] | None = None
    storage_path: str | None = None
    expire_after: float | None = None
    retain: float | None = None
    response: HookResponse | None = None

    def then(self, later: Changes) -> Changes:
        """These changes with those of a later hook on top."""
        return Changes(
            id=self.id if later.id is None else later.id,
            metadata=self.metadata if later.metadata is None else later.metadata,
            storage_path=self.storage_path if later.storage_path is None else later.storage_path,
            expire_after=self.expire_after if later.expire_after is None else later.expire_after,
            retain=self.retain if later.retain is None else later.retain,
            response=self.response if later.response is None else later.response,
        )


class Reject(Exception):
    """Raised by a `pre_` hook: the request is refused with this response. code: for logs and metrics.

    Raises ValueError for a status and for header fields that no response can have.
    """

    def __init__(
        self,
        status: int = 400,
        body: str = "refused by the server",
        headers: Mapping[str, str] | None = None,
        *,
        code: str = "ERR_UPLOAD_REJECTED",
    ) -> None:
        super().__init__(body)
        self.status = status
        self.body = body
        self.code = code
        self.headers = dict(headers or {})
        _check_response(status, self.headers.items())


class Stop(Exception):
    """Raised by a `post_receive` hook: the running request is ended with this response; what arrived is kept.

    Raises ValueError for a status and for header fields that no response can have.
    """

    def __init__(
        self,
        status: int = 400,
        body: str = "the upload was stopped by the server",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(body)
        self.status = status
        self.body = body
        self.headers = dict(headers or {})
        _check_response(status, self.headers.items())


class HookFailed(Exception):
    """Raised by a hook that could not do its work. The text says why, for the log; no traceback is added to it."""


class HookCrashed(HookFailed):
    """A hook raised what is not for the server to understand; the cause has the traceback."""


class HookError(Exception):
    """A hook cannot be loaded; the text says which and why."""


HookFunction = Callable[[Event], "Awaitable[Changes | None] | Changes | None"]


@dataclass(frozen=True, slots=True)
class HookContext:
    """What a hook may want to know of the server that it runs in; given to its `start`.

    offset_of: the offset of an upload, and whether it is finished; None if it is not there (any more).
    """

    settings: Settings
    state: RedisClient | None
    offset_of: Callable[[str], Awaitable[tuple[int, bool] | None]]
    counters: Counters


class RefusedByHook(ProtocolError):
    """A refusal whose message is the body as it is to be sent; its media type is among the headers."""
