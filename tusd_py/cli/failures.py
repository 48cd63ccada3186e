"""Failures that a person can do something about, in one sentence each. Everything else is a bug and keeps its traceback.

Imported when a command has failed, as it imports what can fail.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator

from redis.exceptions import RedisError

from tusd_py.auth.keys import KeysUnavailable
from tusd_py.cli.output import CommandFailed, printable
from tusd_py.maintenance.local import MaintenanceError
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.embedded.server import EmbeddedRedisError
from tusd_py.service.owner import WrongUser
from tusd_py.service.removal_settings import OtherSettings
from tusd_py.storage.base import StorageError, VolumeMissing

_KNOWN = (
    CommandFailed,
    EmbeddedRedisError,
    KeysUnavailable,
    MaintenanceError,
    RedisError,
    RedisUnavailable,
    StorageError,
)

_OF_S3 = ("aiobotocore", "botocore", "aiohttp", "aioitertools", "wrapt", "jmespath")
"""Packages of the extra for buckets, and what these need."""


def is_refused(problem: Exception) -> bool:
    """Whether the command did nothing: its user or its settings are wrong, or the volume of the uploads is not mounted."""
    refusals = (PermissionError, VolumeMissing, WrongUser, OtherSettings)
    return any(isinstance(cause, refusals) for cause in _causes(problem))


def explain(problem: Exception) -> str | None:
    """Return what went wrong and what to do about it; None for a bug."""
    for cause in _causes(problem):
        if isinstance(cause, ModuleNotFoundError) and cause.name in _OF_S3:
            return f"--s3-bucket needs the Python package {cause.name}: pip install 'tusd-py[s3]'"
    if not isinstance(problem, (OSError, *_KNOWN)):
        return None
    for cause in _causes(problem):
        if isinstance(cause, PermissionError):
            return f"{_text(cause)}; run it as the user of the server{_owner(cause)}"
    return _text(problem)


def _text(problem: Exception) -> str:
    if isinstance(problem, OSError) and problem.strerror:
        path = f"{printable(os.fsdecode(problem.filename))}: " if problem.filename else ""
        return f"{path}{problem.strerror}"
    return f"Redis: {problem}" if isinstance(problem, RedisError) else str(problem)


def _causes(problem: BaseException | None) -> Iterator[BaseException]:
    while problem is not None:
        yield problem
        problem = problem.__cause__ or problem.__context__


def _owner(denied: PermissionError) -> str:
    """Name the owner of what must not be read or written, if that is another user."""
    path = denied.filename
    while path and not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    try:
        uid = os.stat(path).st_uid
        return "" if uid == os.geteuid() else f" ({pwd.getpwuid(uid).pw_name})"
    except (OSError, KeyError, TypeError):
        return ""
