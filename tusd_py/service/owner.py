"""Keeps root from storing files that a server of another user could not read or change.

Every other user is kept from that by the system's permissions.
"""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError
from tusd_py.storage.file.layout import STATE_DIRECTORY


class WrongUser(StorageError):
    """This process must not store files where those of another user are. The text names that user."""


def check_user(settings: Settings, *, may_begin: bool) -> None:
    """Raise WrongUser if this process must not change the uploads; OSError if that cannot be told.

    may_begin: whether an upload directory in which nothing is stored yet would become an instance.
    """
    if not settings.s3_bucket:
        check_upload_directory(settings.upload_dir, may_begin=may_begin)
    check_owner(settings.state_dir)


def check_upload_directory(directory: Path, *, may_begin: bool = True) -> None:
    """`check_user` for an upload directory."""
    state = directory / STATE_DIRECTORY
    # Not the directory itself where there is a state: the mount point of a volume is often root's, or the system's.
    if state.is_dir():
        check_owner(state)
    elif may_begin:
        check_owner(directory)


def check_owner(directory: Path) -> None:
    """Raise WrongUser if this is root, and a directory is another user's. One that is missing is nobody's."""
    if os.geteuid() != 0:
        return
    try:
        owner = directory.stat().st_uid
    except FileNotFoundError:
        return
    if owner in (0, _owner_of_new_file(directory)):
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"#{owner}"
    raise WrongUser(
        f"{directory} belongs to the user {name}, who could not read or change what root stores there: run it as that user "
        f"(sudo -u '{name}')"
    )


def _owner_of_new_file(directory: Path) -> int | None:
    """The owner that a new file gets, which file servers may choose (root_squash); None if none can be created."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            return os.fstat(file.fileno()).st_uid
    except OSError:
        return None
