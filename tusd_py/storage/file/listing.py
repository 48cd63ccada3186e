"""Listing of directories, skipping entries that cannot be read."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass

from tusd_py.storage.base import StorageError, is_valid_id
from tusd_py.storage.errors import is_exhausted
from tusd_py.storage.file.disk import Disk
from tusd_py.storage.file.files import exists
from tusd_py.storage.file.layout import STATE_DIRECTORY
from tusd_py.storage.file.threads import Threads
from tusd_py.storage.skipped import Skip, skip_entry

_BATCH_ENTRIES = 1000


async def upload_ids(root: str, disk: Disk, threads: Threads, skip: Skip) -> AsyncIterator[str]:
    """Yield the ids of all uploads under `root`. Raises StorageError if `root` itself cannot be read."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            if bool(prefix) and await disk.read(exists, f"{root}/{prefix}{STATE_DIRECTORY}"):
                # Another server's upload directory: only that server locks its uploads.
                continue
            entries = await disk.read(os.scandir, f"{root}/{prefix}")
        except FileNotFoundError:
            continue
        except OSError as problem:
            if not prefix:
                raise StorageError(f"reading {root}: {problem}") from problem
            skip(prefix, problem)
            continue
        with entries:
            listing = _Listing(entries, prefix, skip)
            while batch := await threads.run(listing.next_batch):
                for name, is_directory in batch:
                    if is_directory:
                        if name != STATE_DIRECTORY:
                            pending.append(f"{prefix}{name}/")
                    elif name.endswith(".info") and is_valid_id(prefix + name[:-5]):
                        yield prefix + name[:-5]


@dataclass(slots=True)
class _Listing:
    """The entries of one directory, in batches. prefix: its path relative to the store, with a slash at the end."""

    entries: Iterator[os.DirEntry[str]]
    prefix: str
    skip: Skip

    def next_batch(self) -> list[tuple[str, bool]]:
        """Return the next names, each with whether it is a directory; none at the end. Blocking."""
        batch: list[tuple[str, bool]] = []
        try:
            for entry in self.entries:
                if (is_directory := self._is_directory(entry)) is not None:
                    batch.append((entry.name, is_directory))
                if len(batch) == _BATCH_ENTRIES:
                    break
        except OSError as problem:
            # Entries read before count; the listing ends here.
            self.skip(self.prefix or ".", problem)
            self.entries = iter(())
        return batch

    def _is_directory(self, entry: os.DirEntry[str]) -> bool | None:
        """Return whether an entry is a directory; None if it cannot be read or its name is not UTF-8."""
        name = entry.name
        try:
            is_directory = entry.is_dir(follow_symlinks=False)
            if not name.isascii() and (is_directory or name.endswith(".info")):
                name.encode("utf-8")
        except OSError as problem:
            self.skip(self.prefix + name, problem)
            return None
        except UnicodeEncodeError:
            self.skip(self.prefix + name, ValueError("its name is not UTF-8"))
            return None
        return is_directory


def files_in(directory: str) -> Iterator[os.DirEntry[str]]:
    """Yield the regular files of a directory, as `entries_of` does its entries."""
    for entry in entries_of(directory):
        with suppress(OSError):
            if entry.is_file(follow_symlinks=False):
                yield entry


def entries_of(directory: str) -> Iterator[os.DirEntry[str]]:
    """Yield all entries of a directory, up to the first error; none if it does not exist.

    Raises OSError where descriptors or memory are used up, as that says nothing about the directory.
    """
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as problem:
        if is_exhausted(problem):
            raise
        skip_entry(directory, problem)
