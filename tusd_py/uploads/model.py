"""The states of an upload, the transitions between them, and the result of a command.

No state is stored: it follows from the record, from the bytes in the storage and from the time, so it is right after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from tusd_py.events.model import HookResponse
from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import Upload


class Result(NamedTuple):
    """The upload after a command. problem: the error if the body of its creation ended early. response: changes by hooks.

    repr_digest: `Repr-Digest` of a finished upload, if its creator wanted one.
    """

    upload: Upload
    problem: ProtocolError | None = None
    response: HookResponse | None = None
    repr_digest: str = ""


class UploadState(Enum):
    """The state of an upload. A request sees 404 for ABSENT, and 410 for EXPIRED and REMOVED."""

    ABSENT = "absent"
    """No upload has the id."""
    RECEIVING = "receiving"
    """Bytes are still to come."""
    WAITING = "waiting"
    """A final upload (tus "Concatenation") whose parts are not joined yet."""
    COMPLETE = "complete"
    """All bytes are stored. They are not synced yet, or the pre-finish hooks have not agreed yet."""
    FINISHED = "finished"
    """The finish is recorded; the bytes do not change any more."""
    EXPIRED = "expired"
    """The time to keep it is over; the next sweep removes it."""
    REMOVED = "removed"
    """Only a tombstone is left."""


TRANSITIONS: Mapping[UploadState, Mapping[UploadState, str]] = {
    UploadState.ABSENT: {
        UploadState.RECEIVING: "POST",
        UploadState.WAITING: "POST of a final upload",
        UploadState.COMPLETE: "POST of an empty upload, or of a final upload whose parts are finished",
    },
    UploadState.RECEIVING: {
        UploadState.COMPLETE: "PATCH, or the body of the POST, with the last byte",
        UploadState.EXPIRED: "no byte for `expire_after`",
        UploadState.REMOVED: "DELETE",
        UploadState.ABSENT: "the POST was refused because of its body",
    },
    UploadState.WAITING: {
        UploadState.COMPLETE: "the last part is finished",
        UploadState.EXPIRED: "no byte of a part for `expire_after`",
        UploadState.REMOVED: "DELETE",
        UploadState.ABSENT: "the POST failed",
    },
    UploadState.COMPLETE: {
        UploadState.FINISHED: "bytes synced, pre-finish hooks agree, record written",
        UploadState.RECEIVING: "the disk lost bytes that it had accepted",
        UploadState.REMOVED: "DELETE, or the sweep if a hook refuses the finish and no byte came for `expire_after`",
        UploadState.ABSENT: "the POST failed",
    },
    UploadState.FINISHED: {
        UploadState.COMPLETE: "the record of the finish could not be synced",
        UploadState.EXPIRED: "`retain_finished` is over; a part: no final upload needs it for `expire_after`",
        UploadState.REMOVED: "DELETE",
    },
    UploadState.EXPIRED: {
        UploadState.RECEIVING: "a request from before still brings bytes",
        UploadState.WAITING: "a request from before still brings bytes of a part",
        UploadState.COMPLETE: "a request from before brings the last byte",
        UploadState.REMOVED: "the sweep",
    },
    UploadState.REMOVED: {
        UploadState.ABSENT: "the sweep, once the tombstone is older than `tombstone_ttl`",
    },
}
"""From each state, the states that can follow, with the cause."""


_NAMES = {
    UploadState.RECEIVING: "uploading",
    UploadState.COMPLETE: "uploading",
    UploadState.WAITING: "waiting",
    UploadState.FINISHED: "finished",
    UploadState.EXPIRED: "expired",
}


def name_of(state: UploadState, upload: Upload) -> str:
    """What operators are told of the state of an upload in the storage; a finished one that is a part is a "part"."""
    if state is UploadState.FINISHED and upload.info.is_partial:
        return "part"
    return _NAMES[state]


def lacks_only_finish(upload: Upload) -> bool:
    """Whether an upload has all its bytes, but its finish was interrupted or failed: the next request or sweep finishes it.

    Such an upload does not expire, however long no server ran. A final has them when its parts do.
    """
    return (upload.complete or upload.has_parts) and not upload.finished


def state_of(upload: Upload, *, due: bool) -> UploadState:
    """The state of an upload that is in the storage; due: whether its expiry or retention is over by now."""
    if due and not lacks_only_finish(upload):
        return UploadState.EXPIRED
    if upload.finished:
        return UploadState.FINISHED
    if not upload.joined:
        return UploadState.WAITING
    return UploadState.COMPLETE if upload.complete else UploadState.RECEIVING
