"""Which upload directories were served before: what is in the place of one whose volume is not mounted is not served.

Where a volume is not mounted its mount point is an empty directory, which looks like a new one: a server would answer 404 to
every upload, and clients would send all of them again. So the id of an upload directory (`storage/file/volume.py`) is
remembered outside of it, by its path: in the state directory where that lies elsewhere, and in the operator's Redis. A
directory without an id that is remembered for its path is refused, until the volume is mounted or the operator accepts what is
there. By path, so that servers of different directories can share a Redis. Not for: a volume that goes away while it is served.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import closing, suppress

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from tusd_py import logs
from tusd_py.jobs.connection import connect
from tusd_py.redis import Keys, RedisClient, RedisUnavailable
from tusd_py.service import state_file
from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError, Volume, VolumeMissing
from tusd_py.storage.file.volume import read_id

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_REMEMBER_SECONDS, _RETRY_SECONDS = 600.0, 5.0
"""Between two times that the id of the upload directory is sent to Redis; the latter while that is away."""
_PATIENCE_SECONDS = 5.0
"""For how long a Redis that does not answer is asked again before a directory is taken for a new one."""


class KnownDirectories:
    """The upload directories that were served at the path of `settings.upload_dir`."""

    def __init__(self, settings: Settings) -> None:
        self._path = str(settings.upload_dir)
        self._policy = settings.new_upload_dir
        self._timeout = settings.redis_timeout
        self._key = Keys(settings.redis_prefix).upload_directory(self._path)
        self._url = None if settings.redis_url is None else settings.redis_url.get_secret_value()
        is_elsewhere = not settings.state_dir.is_relative_to(settings.upload_dir)
        self._file = settings.state_dir / "upload-directories" if is_elsewhere else None

    def check(self, *, wait: float, begins: bool = False) -> None:
        """Return if the directory may be served; blocking. Touches nothing in it.

        Args:
            wait: Seconds for which its volume may still be mounted.
            begins: Whether the caller begins a directory that is new: then a Redis that does not answer is asked again.

        Raises:
            VolumeMissing: It may not; the text says what to do.
        """
        now = time.monotonic()
        deadline, ask_until = now + wait, now + (_PATIENCE_SECONDS if begins else 0.0)
        is_told = False
        while (problem := self._problem(ask_until)) is not None:
            if time.monotonic() >= deadline:
                raise VolumeMissing(problem)
            if not is_told:
                is_told = True
                message = f"Waiting up to {wait:g} s: {problem}"
                logs.event(logger, logging.WARNING, "waiting for the volume", message=message)
            time.sleep(_POLL_SECONDS)

    def _problem(self, ask_until: float) -> str | None:
        if self._policy == "accept":
            return None
        # First: an id that is remembered has been stored in the directory before.
        known = self._known(ask_until)
        found = self._id()
        if found in known or (not known and (found is not None or self._policy == "auto")):
            return None
        if found is None and not known:
            return (
                f"{self._path} was never served, and --new-upload-dir refuse says not to begin: mount its volume, or "
                "start once with --new-upload-dir accept"
            )
        which = "an empty or a new one" if found is None else "another one"
        return (
            f"{self._path} is not the upload directory that was served there before, but {which}: its volume may not be "
            "mounted. Mount it, or start once with --new-upload-dir accept to serve what is there now"
        )

    def _id(self) -> str | None:
        """The id of the directory that is there. Raises StorageError."""
        try:
            return read_id(self._path)
        except OSError as problem:
            raise StorageError(f"cannot use {self._path} for uploads: {problem.strerror}") from None

    def _known(self, ask_until: float) -> set[str]:
        """Ids that are remembered for the path. What does not answer remembers none.

        ask_until: until when Redis is asked again, by the monotonic clock, if only it may know that the directory is not new.
        """
        known = set(self._ids_in_file())
        while True:
            found = self._ask_redis(lambda redis: redis.smembers(self._key))
            if isinstance(found, set):
                ids = (each for each in found if isinstance(each, bytes))
                known.update(each.decode("ascii", "replace") for each in ids)
            is_late = self._url is None or time.monotonic() >= ask_until
            if known or found is not None or is_late or self._id() is not None:
                return known
            time.sleep(_POLL_SECONDS)

    def remember(self, volume: Volume) -> None:
        """Remember that a directory is served, as far as that is possible now; blocking. Raises StorageError."""
        if not volume.id or (self._file is None and self._url is None):
            return
        # A power cut must not take an id that is remembered.
        volume.sync_id()
        self._remember_in_file(volume.id)
        self._ask_redis(lambda redis: redis.sadd(self._key, volume.id))

    async def keep_in_redis(self, redis: RedisClient, volume: Volume) -> None:
        """Remember it in a Redis that was away at the start, or is emptied meanwhile; until cancelled."""
        while volume.id:
            if redis.available:
                with suppress(RedisUnavailable):
                    await redis.command("SADD", self._key, volume.id)
            await asyncio.sleep(_REMEMBER_SECONDS if redis.available else _RETRY_SECONDS)

    def _ask_redis(self, ask: Callable[[Redis], object]) -> object:
        """Return the answer, which may be an error; None if there is none."""
        if self._url is None:
            return None
        try:
            with closing(connect(self._url, timeout=self._timeout)) as redis:
                return ask(redis)
        except (RedisError, OSError) as problem:
            logger.debug("Redis was not asked about the upload directory: %r", problem)
            # As to a user that may not ask.
            return problem if isinstance(problem, ResponseError) else None

    def _ids_in_file(self) -> list[str]:
        ids = None if self._file is None else state_file.read(self._file).get(self._path)
        return [str(each) for each in ids] if isinstance(ids, list) else []

    def _remember_in_file(self, directory_id: str) -> None:
        ids = self._ids_in_file()
        if self._file is None or directory_id in ids:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            known = state_file.read(self._file)
            state_file.write(self._file, {**known, self._path: [*ids, directory_id]})
        except OSError as problem:
            logger.warning("%s cannot be written: %s", self._file, problem.strerror)
