"""Translate what a store or a lock raises to the response of a request, and log the reason. The only place that does so."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from tusd_py import logs
from tusd_py.locks.base import LeaseLost
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError, Refusal
from tusd_py.storage.base import (
    BytesMissing,
    BytesNotKept,
    ForeignObject,
    LocationRefused,
    PlaceTaken,
    ResourcesExhausted,
    StorageError,
    StorageFull,
    StorageUnavailable,
    UploadDamaged,
    UploadExists,
    UploadGone,
    UploadNotFound,
    UploadUnreachable,
    UploadUntrusted,
    VolumeMissing,
)

logger = logging.getLogger(__name__)

_LOG_PAUSE_SECONDS = 60.0


_NOT_LOGGED = logging.NOTSET
_RESPONSES: tuple[tuple[type[Exception], Refusal, int, str], ...] = (
    # The locks have logged it.
    (LeaseLost, errors.interrupted, _NOT_LOGGED, ""),
    (UploadUntrusted, errors.not_found, logging.WARNING, "not served"),
    (UploadNotFound, errors.not_found, _NOT_LOGGED, ""),
    (UploadGone, errors.gone, _NOT_LOGGED, ""),
    (PlaceTaken, errors.path_taken, logging.WARNING, "not created"),
    (UploadExists, errors.id_taken, _NOT_LOGGED, ""),
    (UploadUnreachable, errors.volume_missing, logging.WARNING, "not served now"),
    (UploadDamaged, errors.damaged, logging.ERROR, "not served"),
    # The store has logged it, once.
    (VolumeMissing, errors.volume_missing, _NOT_LOGGED, ""),
    (BytesMissing, errors.bytes_missing, logging.ERROR, "not served now"),
    (StorageUnavailable, errors.unavailable, logging.WARNING, "the store is unavailable"),
    (StorageFull, errors.insufficient_storage, logging.WARNING, "the store is full"),
    (LocationRefused, errors.internal, logging.ERROR, "an upload cannot be stored"),
    (ForeignObject, errors.internal, logging.ERROR, "an upload cannot be stored"),
    (BytesNotKept, errors.bytes_lost, logging.ERROR, "the store lost bytes"),
)
"""By type of the error: the response, and how it is logged. The first row that matches counts."""


def response_to(problem: StorageError | LeaseLost) -> ProtocolError:
    """The response to a request that failed with `problem`, which is logged."""
    if isinstance(problem, ResourcesExhausted):
        return exhausted(problem)
    for kind, refusal, level, text in _RESPONSES:
        if isinstance(problem, kind):
            if level is not _NOT_LOGGED:
                logger.log(level, "%s: %s", text, problem)
            return refusal()
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
