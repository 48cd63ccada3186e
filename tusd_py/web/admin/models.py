"""The documents of the operators' API. The OpenAPI document follows from them (`openapi.py`).

Times are in seconds since the epoch, sizes in bytes, durations in seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["uploading", "waiting", "finished", "part", "expired", "unreadable"]
"""State of an upload. waiting: for its parts; part: finished, to be joined; expired: removed by the next sweep; unreadable: it
cannot be loaded, and only its id is known.
"""
Filter = Literal["all", "unfinished", "finished", "part", "expired"]
Order = Literal["newest", "oldest"]
Box = Literal["waiting", "failed"]
WAITING: Box = "waiting"
FAILED: Box = "failed"
SweepKind = Literal["due", "all"]


Via = Literal["link", "token", "header", "application"]
"""How an operator was admitted."""


class Document(BaseModel):
    """Base of all: nothing but what is declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(Document):
    """Problem details (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str


class Session(Document):
    """Who asks, and what the server offers."""

    operator: str
    via: Via
    version: str
    shows_metadata: bool
    revokes: bool = Field(description="Whether tokens and uploads can be revoked: with --auth jwt.")
    downloads: bool
    delivers_events: bool = Field(
        description="Whether workers deliver events, so that they can be replayed."
    )
    finds_duplicates: bool
    uploads_url: str = Field(description="Where uploads are, for copying their URLs.")


class Trouble(Document):
    """Something that an operator has to attend to. code: stable; detail: in English; count: how many, if it is a number."""

    code: str
    detail: str
    count: int | None = None


class Period(Document):
    """Counts of all servers in thirty seconds of the last hour."""

    bytes: int
    created: int
    finished: int
    refused: int
    duplicates: int


class Overview(Document):
    """The state of the whole instance."""

    at: float
    ready: bool
    receiving: int = Field(description="Requests that bring bytes now.")
    connections: int
    rate: float = Field(description="Bytes a second.")
    known: int | None = Field(description="Uploads in the list; null while Redis is away.")
    unfinished: int | None
    due: int | None
    finished_hour: int | None
    finished_day: int | None
    list_is_whole: bool = Field(description="False while the list of uploads is being built.")
    free: int | None = Field(description="Bytes that can still be stored; null for no limit.")
    reserve: int = Field(description="Bytes that are kept free.")
    spool: int | None = Field(
        description="Memory for bytes on their way to a bucket; null for files."
    )
    workers: int | None
    scheduler: float | None = Field(description="Seconds since a scheduler was active.")
    redis: Literal["ok", "away"]
    problems: list[Trouble]


class Hour(Document):
    """The last hour, in periods of thirty seconds, the oldest first; the last one is not over yet."""

    seconds: int
    periods: list[Period]
    today: Period


class Body(Document):
    """A body that is being received. left: seconds, by its rate. silent: seconds since its last byte was seen."""

    id: str
    name: str | None
    owner: str
    client: str
    server: str
    offset: int
    size: int | None
    rate: float
    left: float | None
    silent: float


class Live(Document):
    """What all servers receive now. total: all bodies, of which a server shows at most 500."""

    at: float
    total: int
    rate: float
    bodies: list[Body]


class UploadRow(Document):
    """An upload as the list shows it. expires: when it is removed, unless more bytes arrive; null for never."""

    id: str
    name: str | None
    owner: str
    state: State
    offset: int
    size: int | None
    created: float
    changed: float
    finished: float | None
    expires: float | None
    problem: str | None = Field(
        description="Why it cannot be shown as it is: its bytes are damaged or missing."
    )


class UploadPage(Document):
    """A page of the list. next: for the following page, null at the end. total: of the list, null for a search."""

    uploads: list[UploadRow]
    next: str | None
    total: int | None
    is_whole: bool


class Moment(Document):
    """Something that happened to an upload, or will."""

    at: float
    what: Literal["created", "byte", "finished", "event", "failed-event", "expires"]
    detail: str | None


class Event(Document):
    """An event that waits for delivery or failed. next: the next attempt. problem: why the last one failed."""

    id: str
    upload: str
    type: str | None
    kept: float
    attempts: int
    next: float | None
    hooks: list[str]
    problem: str | None
    box: Box


class UploadDetail(UploadRow):
    """Everything about one upload. metadata: null unless operators may see it."""

    metadata: dict[str, str] | None
    is_partial: bool
    is_final: bool
    parts: list[str]
    path: str = Field(description="Path of its URL.")
    fingerprint: str | None
    revoked: bool
    timeline: list[Moment]
    events: list[Event]


class EventPage(Document):
    """Events of a box. total is an estimate for many thousands."""

    events: list[Event]
    waiting: int
    failed: int
    oldest: float | None
    delivered: dict[str, int]


class Queue(Document):
    """A queue of jobs. oldest: seconds that the first one has been waiting."""

    name: str
    waiting: int
    running: int
    failed: int
    oldest: float | None


class Worker(Document):
    """A worker. heard: seconds since its last heartbeat."""

    name: str
    host: str
    pid: int
    state: str
    heard: float
    job: str | None


class Sweep(Document):
    """A sweep that ended: counts of uploads."""

    kind: SweepKind
    began: float
    ended: float
    seen: int
    expired: int
    finished: int
    remains: int
    failed: int


class Jobs(Document):
    """Background jobs. schedule: the next run of each, by its name."""

    queues: list[Queue]
    workers: list[Worker]
    scheduler: float | None
    schedule: dict[str, float]
    sweeps: list[Sweep]


class Fingerprint(Document):
    """An upload that has a fingerprint."""

    fingerprint: str
    upload: str
    owner: str
    state: Literal["pending", "complete", "ending"]
    created: float
    completed: float | None
    expires: float


class FingerprintPage(Document):
    """Fingerprints in no order. refused: duplicates that were refused today."""

    fingerprints: list[Fingerprint]
    next: str | None
    refused: int


class Owner(Document):
    """What the uploads of an owner amount to.

    bytes: that arrived. counted: bytes that count towards its quota, unfinished uploads with their length; null if nothing is
    counted. revoked: until when issued tokens are revoked.
    """

    owner: str
    uploads: int
    open: int
    bytes: int
    counted: int | None
    revoked: float | None


class OwnerPage(Document):
    """Owners, those with the most bytes first.

    max_size, quota_bytes, quota_uploads: limits of all owners (--max-size, --quota-bytes, --quota-uploads). is_counting: some
    uploads do not count towards the quotas yet.
    """

    owners: list[Owner]
    next: str | None
    total: int
    max_size: int | None
    quota_bytes: int | None
    quota_uploads: int | None
    is_counting: bool


class Setting(Document):
    """A setting. origin: flag, environment, file or default; null if that is not known."""

    name: str
    group: str
    value: bool | int | float | str | list[str] | None
    origin: str | None
    description: str


class Settings(Document):
    """All settings; secrets are hidden."""

    settings: list[Setting]


class LogLine(Document):
    """A warning or an error of this process."""

    at: float
    level: Literal["warning", "error"]
    text: str


class Log(Document):
    """The last warnings and errors of the process that serves this, the latest first."""

    lines: list[LogLine]


class Action(Document):
    """An action of an operator."""

    at: float
    operator: str
    name: str
    detail: str


class Actions(Document):
    """The last actions that this process carried out, the latest first."""

    actions: list[Action]


class Done(Document):
    """The result of an action. count: of uploads, events or fingerprints. is_running: whether it goes on in the background."""

    count: int
    detail: str
    is_running: bool = False


# What actions take

Id = Annotated[str, Field(min_length=1, max_length=1024)]


class Code(Document):
    """The secret of a one-time link."""

    code: Annotated[str, Field(min_length=1, max_length=512)]


class OneUpload(Document):
    """An upload."""

    upload: Id


class Extension(OneUpload):
    """How long from now to keep an upload."""

    seconds: Annotated[float, Field(gt=0, le=10 * 365 * 86_400)]


class OneOwner(Document):
    """An owner."""

    owner: Annotated[str, Field(min_length=1, max_length=1024)]


class OneFingerprint(Document):
    """A fingerprint, and the upload that has it."""

    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    upload: Id


class SomeEvents(Document):
    """Failed events: by their ids, or those of an upload, or all."""

    events: Annotated[list[Id], Field(max_length=1000)] = []
    upload: Id | None = None
    every: bool = False


class SweepOrder(Document):
    """Which sweep; a dry run counts what would be removed."""

    kind: SweepKind = "due"
    dry_run: bool = True


class Snapshot(Document):
    """What the stream sends once a second."""

    overview: Overview
    live: Live
    period: Period = Field(description="The last thirty seconds or less.")
