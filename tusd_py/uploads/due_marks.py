"""Record when uploads are due, so that a sweep need not read all of them, and which there are, for operators' lists."""

from __future__ import annotations

from tusd_py.redis.due_index import DueIndexWriter, OpenState
from tusd_py.redis.upload_list import Listed, State
from tusd_py.storage.base import Upload


class DueMarks:
    """Records in the index of due uploads and in the list of uploads. names: whether uploads can be found by file name.

    Without a writer it records nothing; sweeps check every upload then.
    """

    def __init__(self, writer: DueIndexWriter | None = None, *, names: bool = False) -> None:
        self._writer = writer
        self._names = names

    def mark(self, upload_id: str, due: float | None) -> None:
        """Record when an upload is due, in seconds since the epoch; None for never."""
        if self._writer is not None:
            self._writer.mark(upload_id, due)

    def keep(self, upload: Upload, due: float | None) -> None:
        """`mark`, and put the upload into the list of uploads as it is now."""
        writer = self._writer
        if writer is None or not writer.mark(upload.id, due):
            return
        writer.count(upload.id, open_state(upload))
        if writer.lists:
            writer.list(upload.id, listed(upload, names=self._names))

    def forget(self, upload_id: str) -> None:
        """Forget an upload that was removed."""
        if self._writer is not None:
            self._writer.mark(upload_id, None)
            self._writer.list(upload_id, None)


def open_state(upload: Upload) -> OpenState | None:
    """The state in which an upload is counted as open; None if it is finished."""
    if upload.info.finished_at is None:
        return "unfinished"
    return "part" if upload.info.is_partial else None


def listed(upload: Upload, *, names: bool) -> Listed:
    """What the list of uploads has of an upload. names: with its file name."""
    info = upload.info
    state: State = open_state(upload) or "finished"
    since = info.created_at if info.finished_at is None else info.finished_at
    name = info.file_name if names else ""
    return Listed(state, info.created_at, since, upload.offset, info.owner, name)
