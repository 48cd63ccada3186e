"""Records of uploads in a bucket: the format of the files, with what finds the bytes again in `TusdPy.S3`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypedDict, cast

from tusd_py.storage.base import StorageError, UploadInfo, UploadNotFound, is_random_id, is_valid_id
from tusd_py.storage.file import foreign, records
from tusd_py.storage.s3.object_store import ObjectHead, Properties, other_bucket
from tusd_py.storage.s3.plan import STEP_PARTS, PartPlan
from tusd_py.storage.s3.presentation import properties_of

TOKEN = "tusd-py-token"  # noqa: S105 - the name of a field
"""Name in the metadata of an object that proves that it is the one of an upload."""
_FINISHED = "tusd-py-finished"
"""Name in the metadata of an object that tells of the finish: how many finishes were undone before it, and its time."""


class _S3(TypedDict, total=False):
    Location: str | None
    Upload: str
    PartBytes: int
    Grows: bool
    StepParts: int
    Token: str
    Holder: str
    Below: int
    VoidTo: int
    Replaced: dict[str, str]
    Given: list[list[int]]
    Before: str | None
    Undone: int
    Revision: str


class TusdsRecord(UploadNotFound):
    """A record that tusd stored, under the name of its object. upload_id: the upload that it is of."""

    def __init__(self, message: str, upload_id: str) -> None:
        super().__init__(message)
        self.upload_id = upload_id


@dataclass(frozen=True, slots=True)
class Record:
    """An upload's record.

    Attributes:
        info: What every store records.
        plan: The sizes of its parts.
        token: Random; in the metadata of its object.
        multipart: Id of its multipart upload; empty if there is none.
        holder: The process that adds bytes: it alone knows the parts without a list.
        below: Parts from this number on do not count: a request stored them that was refused; 0 for none.
        void_to: The last part that was stored so.
        replaced: Etags of the parts that took their place, by number.
        undone: How many finishes were undone. An object that tells of one of them is not finished.
        etag: Of the record's object; empty before it is stored.
        before: For an upload that tusd began, whose object has no token: the etag of the object that was at its key before it
            was taken over; empty if there was none. None for uploads of ours.
        revision: Random, and another one whenever the record is replaced. Stores make etags of the content alone, and a content
            that came back would pass for the one that was there before. Empty for the first.
    """

    info: UploadInfo
    plan: PartPlan
    token: str
    multipart: str = ""
    holder: str = ""
    below: int = 0
    void_to: int = 0
    replaced: Mapping[int, str] = field(default_factory=dict)
    undone: int = 0
    etag: str = ""
    before: str | None = None
    revision: str = ""

    def properties(self, keys: Collection[str], finished_at: float | None = None) -> Properties:
        """What is stored with the object.

        keys: of the metadata; empty for all. finished_at: of an upload that this finishes, in seconds since the epoch.
        """
        known = properties_of(self.info.metadata, only=keys)
        ours = {TOKEN: self.token}
        if finished_at is not None:
            ours[_FINISHED] = f"{self.undone} {finished_at!r}"
        return replace(known, metadata={**known.metadata, **ours})

    @property
    def object_tells_finish(self) -> bool:
        """Whether its object can tell of its finish: not if the client's own metadata has that name.

        Earlier versions, and tusd, stored such metadata with the object.
        """
        return all(name.lower() != _FINISHED for name in self.info.metadata)

    def finish_in(self, properties: Properties) -> float | None:
        """When the object with these properties was finished, in seconds since the epoch; None if it does not tell."""
        if not self.object_tells_finish:
            return None
        undone, _, finished_at = properties.metadata.get(_FINISHED, "").partition(" ")
        if undone != str(self.undone):
            return None
        try:
            return float(finished_at)
        except ValueError:
            return None

    def is_at(self, head: ObjectHead) -> bool:
        """Whether an object is the one of this upload."""
        if self.before is not None:
            return head.etag != self.before
        return head.properties.metadata.get(TOKEN) == self.token

    @property
    def has_own_key(self) -> bool:
        """Whether nobody else can have an object at its key, which a hook did not choose."""
        return self.info.location is None and is_random_id(self.info.id)

    def may_replace(self, head: ObjectHead) -> bool:
        """Whether its completion may replace an object at its key; tusd replaces any.

        It may be its own, or one that a server stored for an earlier upload with this id.
        """
        is_left_over = self.info.location is None and TOKEN in head.properties.metadata
        return self.before is not None or is_left_over or self.is_at(head)

    def counts(self, number: int) -> bool:
        """Whether a part that is listed holds bytes of the upload."""
        return not self.below or number < self.below or number > self.void_to


def serialize(record: Record, *, storage: Mapping[str, str]) -> bytes:
    """Serialize a record. storage: where the bytes are, for other servers."""
    document = json.loads(records.serialize(record.info, root=""))
    document["Storage"] = dict(storage)
    document["TusdPy"]["S3"] = _S3(
        Location=record.info.location,
        Upload=record.multipart,
        PartBytes=record.plan.part_bytes,
        Grows=record.plan.grows,
        Token=record.token,
        Holder=record.holder,
        Below=record.below,
        VoidTo=record.void_to,
        Replaced={str(number): etag for number, etag in record.replaced.items()},
        Undone=record.undone,
    )
    if record.plan.given:
        document["TusdPy"]["S3"]["Given"] = record.plan.given
    if record.plan.grows and record.plan.step_parts != STEP_PARTS:
        document["TusdPy"]["S3"]["StepParts"] = record.plan.step_parts
    if record.before is not None:
        document["TusdPy"]["S3"]["Before"] = record.before
    if record.revision:
        document["TusdPy"]["S3"]["Revision"] = record.revision
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def parse(content: bytes, *, upload_id: str, changed_at: float, etag: str) -> Record:
    """Parse a record. changed_at: when it was stored. Raises StorageError, TusdsRecord."""
    theirs = tusds_id(content)
    if theirs is not None:
        raise TusdsRecord(f"{upload_id}.info is tusd's record of {theirs}", theirs)
    info = records.parse(content, upload_id=upload_id, root="", changed_at=changed_at)
    try:
        ours = cast(_S3, json.loads(content)["TusdPy"]["S3"])
        part_bytes = int(ours["PartBytes"])
        if part_bytes <= 0:
            raise ValueError(f"PartBytes is {part_bytes}")
        location = ours.get("Location")
        return Record(
            info=info._replace(location=location if location and _is_place(location) else None),
            plan=PartPlan(
                part_bytes,
                bool(ours.get("Grows")),
                tuple((int(size), int(count)) for size, count in ours.get("Given", ())),
                _step_parts(ours),
            ),
            token=str(ours["Token"]),
            multipart=str(ours.get("Upload", "")),
            holder=str(ours.get("Holder", "")),
            below=int(ours.get("Below", 0)),
            void_to=int(ours.get("VoidTo", 0)),
            replaced={int(number): str(e) for number, e in ours.get("Replaced", {}).items()},
            undone=int(ours.get("Undone", 0)),
            etag=etag,
            before=ours.get("Before"),
            revision=str(ours.get("Revision", "")),
        )
    except records.MALFORMED as problem:
        raise StorageError(f"{upload_id}.info is not a record of ours: {problem!r}") from problem


def _step_parts(ours: _S3) -> int:
    """Parts after which parts grow. Raises ValueError."""
    found = int(ours.get("StepParts", STEP_PARTS))
    if found <= 0:
        raise ValueError(f"StepParts is {found}")
    return found


def tusds_id(content: bytes) -> str | None:
    """The id in a record of tusd's for S3; None for other content."""
    try:
        document = json.loads(content)
    except ValueError:
        return None
    if foreign.layout_of(document) != "tusd":
        return None
    found = document["ID"]
    return found if isinstance(found, str) and "+" in found else None


def _is_place(location: str) -> bool:
    return is_valid_id(location) or other_bucket(location) is not None
