"""Removals whose event could not be put into the outbox, as on a full disk: the upload's record is kept until it is.

    untold/<upload>.<offset>-<kept>-<event>     the record; kept: 1 if a tombstone is to remain

Renaming a record takes no space, and its new name holds what the record lacks. No event is delivered from here: a sweep puts
the events into the outbox and then forgets the removals. Blocking calls on small files.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress

from tusd_py.storage.base import RemovalEvent, StorageError, UnpublishedRemoval, Upload
from tusd_py.storage.file import records
from tusd_py.storage.file.layout import flat_name, id_of
from tusd_py.storage.file.record_file import read_record

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<upload>.+)\.(?P<offset>[0-9]+)-(?P<kept>[01])-(?P<event>[0-9a-f]{1,40})")


class UnpublishedRemovals:
    """The unpublished removals of one upload directory, `root`. state: where their directory is."""

    def __init__(self, state: str, *, root: str) -> None:
        self.directory = f"{state}/untold"
        self._root = root

    def path(self, upload_id: str, event: RemovalEvent, *, keep_tombstone: bool) -> str:
        """Return where the record of a removed upload is kept."""
        name = f"{flat_name(upload_id)}.{event.offset}-{int(keep_tombstone)}-{event.event_id}"
        return f"{self.directory}/{name}"

    def has(self, upload_id: str) -> bool:
        """Return whether a removed upload is here and is to leave a tombstone. Raises OSError."""
        flat = flat_name(upload_id)
        return any(match["upload"] == flat and match["kept"] == "1" for match in self._names())

    def all(self) -> list[UnpublishedRemoval]:
        """Return all removals that can be read. Raises OSError."""
        return [found for match in self._names() if (found := self._read(match)) is not None]

    def _names(self) -> Iterator[re.Match[str]]:
        for name in os.listdir(self.directory):
            if match := _NAME.fullmatch(name):
                yield match

    def _read(self, match: re.Match[str]) -> UnpublishedRemoval | None:
        upload_id, offset = id_of(match["upload"]), int(match["offset"])
        path = f"{self.directory}/{match.string}"
        try:
            content, status = read_record(path)
            info = records.parse(
                content, upload_id=upload_id, root=self._root, changed_at=status.st_mtime
            )
        except FileNotFoundError:
            return None
        except (OSError, StorageError) as problem:
            logger.error(
                "the event of the removal of %s cannot be published: %s", upload_id, problem
            )
            return None
        event = RemovalEvent(match["event"], offset)
        return UnpublishedRemoval(
            Upload(info, offset, info.created_at), event, match["kept"] == "1"
        )

    def forget(self, removal: UnpublishedRemoval, tombstone: str | None) -> None:
        """Forget a removal. tombstone: the path to which its emptied record moves, if any. Raises OSError."""
        path = self.path(removal.upload.id, removal.event, keep_tombstone=removal.keep_tombstone)
        with suppress(FileNotFoundError):
            if tombstone is None:
                os.unlink(path)
                return
            # If a crash keeps it from being emptied, it counts as an interrupted removal, which is completed.
            os.rename(path, tombstone)
            os.truncate(tombstone, 0)
