"""Translate what a store or a lock raises to the response of a request, and log the reason. The only place that does so."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from tusd_py import logs
from tusd_py.locks.base import LeaseLost
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import (
    BytesMissing,
    BytesNotKept,
    ResourcesExhausted,
    StorageError,
    StorageFull,
    StorageUnavailable,
    UploadDamaged,
    UploadExists,
    UploadGone,
    UploadNotFound,
    UploadUntrusted,
    VolumeMissing,
)

logger = logging.getLogger(__name__)

_LOG_PAUSE_SECONDS = 60.0


def response_to(problem: StorageError | LeaseLost) -> ProtocolError:
    """The response to a request that failed with `problem`, which is logged."""
    match problem:
        case LeaseLost():
            # The locks have logged it.
            return errors.interrupted()
        case UploadUntrusted():
            logger.warning("not served: %s", problem)
            return errors.not_found()
        case UploadNotFound():
            return errors.not_found()
        case UploadGone():
            return errors.gone()
        case UploadExists():
            return errors.id_taken()
        case UploadDamaged():
            logger.error("not served: %s", problem)
            return errors.damaged()
        case VolumeMissing():
            # The store has logged it, once.
            return errors.volume_missing()
        case BytesMissing():
            logger.error("not served now: %s", problem)
            return errors.bytes_missing()
    return _of_store(problem)


def _of_store(problem: StorageError) -> ProtocolError:
    """The response where it is not the upload that is wrong."""
    match problem:
        case ResourcesExhausted():
            return exhausted(problem)
        case StorageUnavailable():
            logger.warning("the store is unavailable: %s", problem)
            return errors.unavailable()
        case StorageFull():
            logger.warning("the store is full: %s", problem)
            return errors.insufficient_storage()
        case BytesNotKept():
            logger.error("the store lost bytes: %s", problem)
            return errors.bytes_lost()
    logger.error("the store failed: %s", problem, exc_info=problem)
    return errors.internal()


_exhaustion_logged_at = float("-inf")


def exhausted(problem: Exception) -> ProtocolError:
    """The response while file descriptors or memory are used up. Logged once a minute, as every request fails then."""
    global _exhaustion_logged_at  # noqa: PLW0603 - of the process, as its descriptors are
    if time.monotonic() - _exhaustion_logged_at >= _LOG_PAUSE_SECONDS:
        _exhaustion_logged_at = time.monotonic()
        logs.event(
            logger,
            logging.ERROR,
            "resources exhausted",
            message=f"Requests are refused for now, as this process or the system is out of descriptors or memory: {problem}",
            reason=str(problem),
        )
    return errors.unavailable()


class _Translation:
    """See `translated`. A class, because every request uses it and a generator takes three times as long."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        problem: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if isinstance(problem, StorageError | LeaseLost):
            raise response_to(problem) from None


translated = _Translation()
"""`with translated:` raises the response in place of an error of a store or a lock."""
