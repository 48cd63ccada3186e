"""Files of finished uploads under the operator's names: hard links to the uploads' bytes, in a directory of their own.

A link takes no space and no time, and shows the whole file or nothing. The server keeps its own name of the bytes, so that
downloads and removals do not depend on what others do with the link. The record has the path before there is a link: whoever
repeats a finish that a crash interrupted finds the link or makes it, and never makes a second one. Blocking calls.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tusd_py.storage.base import StorageError, UploadInfo
from tusd_py.storage.file.fsync import sync_path
from tusd_py.storage.file.layout import STATE_DIRECTORY
from tusd_py.storage.finished_names import FinishedNames

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_ATTEMPTS = 20
"""Times that a directory is made again after another process removed it because it was empty."""


class FinishedFiles:
    """The links in one directory.

    Args:
        base: Absolute path of the directory.
        template: Names in it; see `FinishedNames`.
        removes: A link is removed together with its upload.
        dir_perms: Permission bits of new directories.
    """

    def __init__(self, base: str, template: str, *, removes: bool, dir_perms: int) -> None:
        self.base = base
        self._names = FinishedNames(template)
        self._removes = removes
        self._dir_perms = dir_perms

    def open(self, root: str, probe: str) -> None:
        """Make the directory, and try a link in it. Raises StorageError, OSError.

        root: the upload directory. probe: an existing file there.
        """
        self._make_base()
        if f"{self.base}/".startswith(f"{root}/"):
            # A listing of uploads skips a directory that has such a file.
            os.makedirs(f"{self.base}/{STATE_DIRECTORY}", mode=self._dir_perms, exist_ok=True)
        path = f"{self.base}/.tusd-py-probe-{secrets.token_hex(4)}"
        try:
            os.link(probe, path)
        except OSError as problem:
            raise StorageError(
                f"cannot give finished files names in {self.base} (--finished-dir): {_reason(problem)}"
            ) from problem
        os.unlink(path)

    def _make_base(self) -> None:
        made, directory = [], self.base
        while not os.path.isdir(directory):
            directory = os.path.dirname(directory)
            made.append(directory)
        os.makedirs(self.base, mode=self._dir_perms, exist_ok=True)
        for parent in made:
            sync_path(parent)

    def holds(self, path: str) -> bool:
        """Whether a path is in this directory."""
        return f"{path}/".startswith(f"{self.base}/")

    # Naming

    def candidates(self, info: UploadInfo) -> Iterator[str]:
        """Yield the paths that an upload may get: first the one that its record has, unless the settings are others now."""
        if self.holds(info.finished_path):
            yield info.finished_path
        for name in self._names.of(info):
            yield f"{self.base}/{name}"

    def is_free(self, path: str, data: str) -> bool:
        """Whether a path is nobody's, or a link to `data` already. Raises OSError."""
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        return os.path.samestat(found, os.lstat(data))

    def link(self, data: str, path: str) -> bool:
        """Give `data` this path; returns False if another file has it. Raises OSError, StorageError."""
        for _ in range(_MAX_ATTEMPTS):
            # What removes an upload meanwhile may remove directories that it leaves empty.
            with suppress(FileNotFoundError), self._directory_of(path) as (directory, name):
                try:
                    os.link(data, name, dst_dir_fd=directory)
                except FileExistsError:
                    return os.path.samestat(
                        os.stat(name, dir_fd=directory, follow_symlinks=False), os.lstat(data)
                    )
                return True
        raise FileNotFoundError(errno.ENOENT, f"the directory of {path} keeps being removed")

    @contextmanager
    def _directory_of(self, path: str) -> Iterator[tuple[int, str]]:
        """Open the directory of a path, made if missing, without following links below `base`; yield it and the last name."""
        *directories, name = path[len(self.base) :].strip("/").split("/")
        self._make_base()
        opened = os.open(self.base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for each in directories:
                with suppress(FileExistsError):
                    os.mkdir(each, self._dir_perms, dir_fd=opened)
                inner = _opened(each, opened, path)
                os.close(opened)
                opened = inner
            yield opened, name
        finally:
            os.close(opened)

    def directories(self, path: str) -> list[str]:
        """The directories that have to be durable for a link to be, deepest first."""
        found = [os.path.dirname(path)]
        while self.holds(found[-1]) and found[-1] != self.base:
            found.append(os.path.dirname(found[-1]))
        return found

    # Removal

    def remove(self, info: UploadInfo, data: str) -> None:
        """Remove the link of an upload that is being removed, if it is to go with it. Raises OSError.

        A link of an upload that is not finished goes in any case: nobody was told of it.
        """
        if info.finished_path and (self._removes or info.finished_at is None):
            self.unlink(info.finished_path, data)

    def unlink(self, path: str, data: str) -> None:
        """Remove a link to `data`; does nothing if something else has its path. Raises OSError."""
        try:
            if not os.path.samestat(os.lstat(path), os.lstat(data)):
                return
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        directory = os.path.dirname(path)
        with suppress(OSError):
            while self.holds(directory) and directory != self.base:
                os.rmdir(directory)
                directory = os.path.dirname(directory)


def _opened(name: str, parent: int, path: str) -> int:
    """Open a directory in another one. Raises StorageError if it is something else, as for a link."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except OSError as problem:
        if problem.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise StorageError(
            f"{name} in {path} (--finished-dir) is not a directory, or a link, which is not followed; remove it"
        ) from problem


def _reason(problem: OSError) -> str:
    if problem.errno == errno.EXDEV:
        return (
            "it is on another file system than the upload directory, or mounted apart from it, and a file cannot have names on "
            "two; use a directory beside the upload directory, in the same volume"
        )
    if problem.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
        return "its file system has no hard links"
    return problem.strerror or str(problem)
