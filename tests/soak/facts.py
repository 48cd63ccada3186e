"""What clients were told and what was done to the servers, fact by fact: lines of a history, and what the model learns from.

An upload is named by its path. Times are those at which a fact was noted, in seconds by the monotonic clock of the driver.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["", "pending", "complete"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A creation is sent. fingerprint: what the duplicate check compares, empty if that is nothing."""

    fingerprint: str
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Created:
    """201. asked: when the request was sent. length: -1 while it is unknown. client: whose it is.

    by_refusal: no 201, but the refusal of a duplicate named it. Its creation may still fail.
    failed: an error with its URL. Such a creation gives its fingerprint back, so that the client may begin anew.
    """

    upload: str
    fingerprint: str
    asked: float
    length: int
    client: int
    is_part: bool = False
    is_final: bool = False
    forced: bool = False
    by_refusal: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A creation that may have succeeded, and whose client does not know."""

    fingerprint: str
    whole: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """A creation was refused as a duplicate (409). location: the upload to resume, if there is one."""

    fingerprint: str
    asked: float
    state: State
    location: str = ""


@dataclass(frozen=True, slots=True)
class Sending:
    """Bytes are sent: these will be on the line. verified: with a checksum. corrupt: with one that is wrong."""

    upload: str
    start: int
    end: int
    verified: bool = False
    corrupt: bool = False


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The response to bytes, with the offset behind them."""

    upload: str
    offset: int


@dataclass(frozen=True, slots=True)
class Offset:
    """The response to a HEAD."""

    upload: str
    offset: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A client was told that its upload is complete."""

    upload: str
    length: int


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A client got all bytes. right: they are those that it sent."""

    upload: str
    right: bool


@dataclass(frozen=True, slots=True)
class Removing:
    """A DELETE is sent."""

    upload: str


@dataclass(frozen=True, slots=True)
class Removed:
    """A client was told that its upload is removed."""

    upload: str


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A client leaves its upload unfinished."""

    upload: str


@dataclass(frozen=True, slots=True)
class Missing:
    """404 or 410."""

    upload: str
    status: int


@dataclass(frozen=True, slots=True)
class Odd:
    """A response that no client can make sense of."""

    upload: str
    text: str


@dataclass(frozen=True, slots=True)
class Announced:
    """The hook endpoint got an event about the upload with this id. event_id: the same for its repeats."""

    kind: str
    upload_id: str
    event_id: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Something was done to the servers. ends: whether this is the end of what was begun before."""

    kind: str
    detail: str = ""
    ends: bool = False


Fact = (
    Asked
    | Created
    | Unanswered
    | Refused
    | Sending
    | Acknowledged
    | Offset
    | Finished
    | Downloaded
    | Removing
    | Removed
    | Abandoned
    | Missing
    | Odd
    | Announced
    | Fault
)
_KINDS: dict[str, type[Fact]] = {
    kind.__name__: kind
    for kind in (
        *(Asked, Created, Unanswered, Refused, Sending, Acknowledged, Offset, Finished, Downloaded),
        *(Removing, Removed, Abandoned, Missing, Odd, Announced, Fault),
    )
}


def to_document(fact: Fact) -> dict[str, object]:
    """A fact as a JSON object, without what is not said."""
    said = {
        name: value for name, value in asdict(fact).items() if value != "" and value is not False
    }
    return {"fact": type(fact).__name__, **said}


def from_document(document: dict[str, object]) -> Fact:
    """The fact of a JSON object; other members than its own are left out."""
    kind = _KINDS[str(document["fact"])]
    names = kind.__dataclass_fields__
    return kind(**{name: value for name, value in document.items() if name in names})  # type: ignore[arg-type]
