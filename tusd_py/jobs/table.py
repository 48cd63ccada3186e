"""The jobs that workers run, by name: a fixed table, and the only way from data in Redis to code.

Unknown names and wrong arguments are refused before anything is imported. `rq_classes` stores jobs in Redis.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

from tusd_py.storage.base import is_valid_id

DELIVER = "deliver"
SWEEP_DUE = "sweep-due"
SWEEP_ALL = "sweep-all"
SWEEP_TUSPYSERVERS = "sweep-tuspyservers"

_HOUR = 3600
_MAX_BYTES = 16 * 1024
"""Size of a job's document, which has a name and an upload id."""


class JobRefused(Exception):
    """A job that is not in the table. The text says why, for the log, without any content of the job."""


@dataclass(frozen=True, slots=True)
class JobKind:
    """A kind of job. function: its implementation, as `module:name`. result_ttl: seconds for which a success is remembered.

    takes_upload: whether it has the id of an upload as its argument; otherwise it has none. failure_ttl: seconds for which a
    failure is remembered.
    """

    name: str
    function: str
    takes_upload: bool = False
    result_ttl: int = _HOUR
    """That of a sweep, so that a scheduler whose clock is behind does not schedule it again."""
    failure_ttl: int = 24 * _HOUR
    """That of a sweep, which fails only if its worker was killed, and the next one does its work."""
    timeout: ClassVar[int] = 6 * _HOUR
    """Seconds that it may take. The sweep of a million uploads takes minutes; hooks have their own timeouts."""

    def accepts(self, arguments: Sequence[object]) -> bool:
        """Return whether arguments are valid."""
        match arguments:
            case [str(upload_id)] if self.takes_upload:
                return is_valid_id(upload_id)
        return not arguments and not self.takes_upload

    def run(self, arguments: Sequence[str]) -> None:
        """Run a job. Its module is imported only here, as servers, which queue jobs, do not need it."""
        module, _, name = self.function.partition(":")
        function: Callable[..., None] = getattr(import_module(module), name)
        function(*arguments)


KINDS = {
    kind.name: kind
    for kind in (
        # The outbox has the outcome of deliveries.
        JobKind(
            DELIVER,
            "tusd_workers.delivery_runner:deliver",
            takes_upload=True,
            result_ttl=0,
            failure_ttl=_HOUR,
        ),
        JobKind(SWEEP_DUE, "tusd_workers.expiry:sweep_due"),
        JobKind(SWEEP_ALL, "tusd_workers.expiry:sweep_all"),
        JobKind(SWEEP_TUSPYSERVERS, "tusd_workers.expiry:sweep_tuspyservers"),
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
