"""Names and paths of an upload directory. Computes them only; touches no file."""

from __future__ import annotations

import os
import secrets
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tusd_py.storage.base import UploadInfo

STATE_DIRECTORY = ".tusd-py"
"""Name of the server's own directory; no upload id begins with a dot."""

_MAX_PREFIX = 150
"""Characters of an id in the name of a temporary file, so that the name fits a file system's limit of 255 bytes."""


class Layout:
    """Paths of the upload directory `root`: of each upload, and of the server's own files in `state`.

    dir_perms, file_perms: permission bits of what is made there.

    Attributes:
        root: Absolute path of the upload directory.
        state: The server's own directory.
        new, tombstones, missing: Directories in it, see `store.py`.
        is_local: Whether the directory is certain to lie on a disk of this machine; set when the store is opened.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, dir_perms: int = 0o750, file_perms: int = 0o640
    ) -> None:
        self.root = os.path.abspath(root)
        self.dir_perms = dir_perms
        self.file_perms = file_perms
        self.state = f"{self.root}/{STATE_DIRECTORY}"
        self.new = f"{self.state}/new"
        self.tombstones = f"{self.state}/gone"
        self.missing = f"{self.state}/missing"
        self.is_local = False
        # Not the process id: servers in containers that share a directory may all have the same one.
        self._token = secrets.token_hex(4)
        self._serials = count(1)

    def info_path(self, upload_id: str) -> str:
        """Path of an upload's record."""
        return f"{self.root}/{upload_id}.info"

    def data_path(self, info: UploadInfo) -> str:
        """Path of an upload's bytes."""
        return f"{self.root}/{info.location or info.id}"

    def tombstone(self, upload_id: str) -> str:
        return f"{self.tombstones}/{flat_name(upload_id)}"

    def new_path(self, name: str) -> str:
        """An unused path for a temporary file. name: an upload's id, as a rule."""
        return f"{self.new}/{flat_name(name)[:_MAX_PREFIX]}.{self._token}.{next(self._serials)}"

    def directories(self, info: UploadInfo) -> list[str]:
        """The directories that hold an upload's entries, up to and including the root, deepest first."""
        found: set[str] = set()
        for path in (self.data_path(info), self.info_path(info.id)):
            directory = os.path.dirname(path)
            while directory not in found:
                found.add(directory)
                if len(directory) > len(self.root):
                    # Directories that are part of an id have entries of their own.
                    directory = os.path.dirname(directory)
        return sorted(found, reverse=True)


def flat_name(upload_id: str) -> str:
    """The id as one file name. Ids contain no `%`, so two of them never collide."""
    return upload_id.replace("/", "%")


def id_of(name: str) -> str:
    """The id that `flat_name` made into `name`."""
    return name.replace("%", "/")
