"""What a process knows of an upload to which it adds bytes, so that it need not ask the bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tusd_py.storage.base import UploadInfo
from tusd_py.storage.s3.object_store import Part
from tusd_py.storage.s3.progress import Progress
from tusd_py.storage.s3.record import Record


@dataclass(slots=True)
class Live:
    """An upload to which this process adds bytes, or did last.

    Attributes:
        record: As it is stored.
        progress: What the bucket has acknowledged.
        may_have_twin: An earlier holder may have begun a multipart upload that it did not record.
        may_be_finished: The bucket was asked to store an object that says so.
        is_doubtful: A request failed that may have had its effect: the bucket is to be asked before anything else.
        arrived: Parts behind a gap, which count once it is closed.
    """

    record: Record
    progress: Progress
    may_have_twin: bool
    may_be_finished: bool = False
    is_doubtful: bool = False
    arrived: dict[int, Part] = field(default_factory=dict)

    @property
    def info(self) -> UploadInfo:
        """The record with the finish, which may be told of by the object alone."""
        info, finished_at = self.record.info, self.progress.finished_at
        if info.finished_at is None and finished_at is not None:
            return info._replace(finished_at=finished_at)
        return info

    @contextmanager
    def doubtful_after_failure(self) -> Iterator[None]:
        """Note that the bucket is to be asked next time, if the block fails: its requests may have had their effect."""
        try:
            yield
        except BaseException:
            self.is_doubtful = True
            raise

    def add(self, part: Part, now: float) -> None:
        """Count a part that the bucket has."""
        progress = self.progress
        self.arrived[part.number] = part
        while (following := self.arrived.pop(len(progress.parts) + 1, None)) is not None:
            progress.parts.append(following)
            progress.end += following.size
            # Whatever the tail had is in this part.
            progress.tail = None
            progress.changed_at = now
