"""Removals whose event could not be recorded, as on a full disk: the record of the upload is kept until it is.

    untold/<upload>.<offset>-<kept>-<event>     the record; kept: whether a tombstone is to stay of it

A record that is renamed needs no room, and its name says what is not in it. Nothing is told from here: whoever finds one puts
its event into the outbox, and then forgets it. Blocking calls on small files.
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
    """Those of one directory. state: where the directory for them is made. root: of the uploads."""

    def __init__(self, state: str, *, root: str) -> None:
        self.directory = f"{state}/untold"
        self._root = root

    def path(self, upload_id: str, event: RemovalEvent, *, keep_tombstone: bool) -> str:
        """Where the record of an upload is kept whose removal is an event to be told."""
        name = f"{flat_name(upload_id)}.{event.offset}-{int(keep_tombstone)}-{event.event_id}"
        return f"{self.directory}/{name}"

    def has(self, upload_id: str) -> bool:
        """Whether such an upload is remembered."""
        flat = flat_name(upload_id)
        return any(match["upload"] == flat and match["kept"] == "1" for match in self._names())

    def all(self) -> list[UnpublishedRemoval]:
        """Every one that can be read. Raises OSError."""
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
            logger.error("the removal of %s cannot be told: %s", upload_id, problem)
            return None
        event = RemovalEvent(match["event"], offset)
        return UnpublishedRemoval(
            Upload(info, offset, info.created_at), event, match["kept"] == "1"
        )

    def forget(self, removal: UnpublishedRemoval, tombstone: str | None) -> None:
        """Its event is recorded. tombstone: what its record becomes, emptied. Raises OSError."""
        path = self.path(removal.upload.id, removal.event, keep_tombstone=removal.keep_tombstone)
        with suppress(FileNotFoundError):
            if tombstone is None:
                os.unlink(path)
                return
            # Whoever finds it before it is emptied takes it for a removal that did not come to its end, and empties it.
            os.rename(path, tombstone)
            os.truncate(tombstone, 0)
