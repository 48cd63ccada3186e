"""The jobs that workers run, by name: a fixed table, and the only way from data in Redis to code.

Unknown names and wrong arguments are refused before anything is imported. `rq_classes` stores jobs in Redis.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from tusd_py.storage.base import is_valid_id

DELIVER = "deliver"
SWEEP_DUE = "sweep-due"
SWEEP_ALL = "sweep-all"
SWEEP_TUSPYSERVERS = "sweep-tuspyservers"

_MAX_BYTES = 16 * 1024
"""Size of a job's document, which has a name and an upload id."""


class JobRefused(Exception):
    """A job that is not in the table. The text says why, for the log, without any content of the job."""


@dataclass(frozen=True, slots=True)
class JobKind:
    """A kind of job. timeout: seconds it may take; result_ttl, failure_ttl: seconds for which its end is remembered.

    accepts: returns whether arguments are valid. function: its implementation, as `module:name`.
    """

    name: str
    timeout: int
    result_ttl: int
    failure_ttl: int
    accepts: Callable[[Sequence[object]], bool]
    function: str

    def run(self, arguments: Sequence[str]) -> None:
        """Run a job. Its module is imported only here, as servers, which queue jobs, do not need it."""
        module, _, name = self.function.partition(":")
        function: Callable[..., None] = getattr(import_module(module), name)
        function(*arguments)


def _none(arguments: Sequence[object]) -> bool:
    return not arguments


def _one_upload(arguments: Sequence[object]) -> bool:
    match arguments:
        case [str(upload_id)]:
            return is_valid_id(upload_id)
    return False


_SIX_HOURS = 6 * 3600
"""Seconds. The sweep of a million uploads takes minutes; hooks have their own timeouts."""
_HOUR = 3600
"""Seconds. The outbox has the outcome of deliveries. A sweep is remembered so that a scheduler whose clock is behind does not
schedule it again."""
_DAY = 86_400
"""Seconds. A sweep fails only if its worker was killed, and the next one does its work."""

KINDS = {
    kind.name: kind
    for kind in (
        JobKind(DELIVER, _SIX_HOURS, 0, _HOUR, _one_upload, "tusd_workers.delivery_runner:deliver"),
        JobKind(SWEEP_DUE, _SIX_HOURS, _HOUR, _DAY, _none, "tusd_workers.expiry:sweep_due"),
        JobKind(SWEEP_ALL, _SIX_HOURS, _HOUR, _DAY, _none, "tusd_workers.expiry:sweep_all"),
        JobKind(
            SWEEP_TUSPYSERVERS,
            _SIX_HOURS,
            _HOUR,
            _DAY,
            _none,
            "tusd_workers.expiry:sweep_tuspyservers",
        ),
    )
}


def parse(data: bytes) -> tuple[JobKind, tuple[str, ...]]:
    """Parse a job's document as rq stores it: JSON of name, instance, arguments, keyword arguments; compressed or not.

    Raises JobRefused.
    """
    try:
        document: object = json.loads(_decompressed(data).decode())
    except (ValueError, RecursionError):
        # This also refuses pickles, which are not JSON.
        raise JobRefused("its content is not JSON") from None
    match document:
        case [str(name), None, [*arguments], {**keywords}] if not keywords:
            pass
        case _:
            raise JobRefused("its content is not that of a job")
    kind = KINDS.get(name)
    if kind is None:
        raise JobRefused("its name is not that of one of our jobs")
    if not kind.accepts(arguments):
        raise JobRefused(f"its arguments are not those of {kind.name}")
    return kind, tuple(str(each) for each in arguments)


def _decompressed(data: bytes) -> bytes:
    """Decompress a document. Raises JobRefused if it is too large, without unpacking it whole."""
    if len(data) > _MAX_BYTES:
        raise JobRefused("it is too large")
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(data, _MAX_BYTES)
    except zlib.error:
        return data
    if unpacker.unconsumed_tail:
        raise JobRefused("it is too large")
    return plain
