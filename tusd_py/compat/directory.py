"""Reads the records in a directory of tuspyserver's router, and removes expired uploads.

In its format, and under its lock files, while it runs. Not for taking such a directory over (`storage/foreign.py`).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from tusd_py import logs
from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import StorageError, UploadInfo
from tusd_py.storage.file import foreign
from tusd_py.storage.file.layout import STATE_DIRECTORY
from tusd_py.storage.file.records import MALFORMED, read_record
from tusd_py.storage.file.sweep_marks import SweepMarkFiles
from tusd_py.storage.skipped import printable, skip_entry
from tusd_py.uploads.sweep_guard import begins_hold, hold_reason, steady

logger = logging.getLogger(__name__)


_LONGEST_PAUSE_SECONDS = 35 * 86_400.0
"""Longest time between two calls of `expire` by a scheduler of the operator's, which may run once a month."""


@dataclass(slots=True)
class Expired:
    """Result of a sweep. removed: paths. in_use, not_understood: number of skipped records.

    held: number of due uploads that were not removed, because of held_because.
    """

    seen: int = 0
    removed: list[str] = field(default_factory=list)
    in_use: int = 0
    not_understood: int = 0
    held: int = 0
    held_because: str = ""


def expire(
    files_dir: str | os.PathLike[str],
    *,
    finished: bool = False,
    dry_run: bool = False,
    force: bool = False,
    longest_pause: float = _LONGEST_PAUSE_SECONDS,
    clock: Callable[[], float] = time.time,
) -> Expired:
    """Remove the expired uploads of tuspyserver's router in a directory and those below it; blocking.

    Each upload is removed under the lock that the router itself takes, after a second look: unfinished uploads and parts at
    the time that their record names, finished ones only with `finished`. If it is killed, the next run removes what is left.
    A sweep that would remove most of what there is, or whose clock is far from that of the last one, is held for a day.

    Args:
        files_dir: The directory.
        finished: Remove finished uploads as well.
        dry_run: Change nothing, report only.
        force: Do not hold the sweep.
        longest_pause: The longest time between two sweeps, in seconds; after more, the clock may be wrong.
        clock: Returns seconds since the epoch.
    """
    root = os.path.abspath(os.fspath(files_dir))
    # Where the router keeps its locks: it takes nothing there for an upload.
    locks = os.path.join(root, foreign.LOCKS)
    marks = SweepMarkFiles(locks)
    clock = steady(clock)
    if not dry_run:
        with suppress(OSError):
            os.makedirs(locks, exist_ok=True)
    if not dry_run and not force:
        held = _held(root, finished, clock, marks, longest_pause)
        if held is not None:
            return held
    report = Expired()
    for path in records(root):
        report.seen += 1
        try:
            if not _is_due(path, finished, clock()):
                continue
            if not dry_run and not _remove(path, finished, clock):
                continue
        except BlockingIOError:
            report.in_use += 1
        except (StorageError, OSError, UnicodeError) as problem:
            report.not_understood += 1
            logger.warning("passed over: %s", printable(str(problem)))
        else:
            report.removed.append(path)
    if not dry_run and report.seen:
        marks.record_end(clock())
    return report


def _held(
    root: str,
    finished: bool,
    clock: Callable[[], float],
    marks: SweepMarkFiles,
    longest_pause: float,
) -> Expired | None:
    """Log and return a report if the sweep is held; None if it may run."""
    seen = due = 0
    for path in records(root):
        seen += 1
        # What cannot be read is reported by the sweep itself.
        with suppress(StorageError, OSError, UnicodeError):
            due += _is_due(path, finished, clock())
    times, now = marks.read(), clock()
    reason = hold_reason(times, seen=seen, due=due, now=now, longest_pause=longest_pause)
    if reason is None:
        return None
    if begins_hold(times, now, longest_pause):
        marks.record_hold(now)
    logs.event(
        logger,
        logging.WARNING,
        "sweep held",
        message=f"Nothing is removed from {root} now: {reason}. See whether the clock is right; if so, "
        "expire(…, force=True) removes what is due",
        directory=root,
        due=due,
        seen=seen,
        reason=reason,
    )
    return Expired(seen=seen, held=due, held_because=reason)


def _remove(path: str, finished: bool, clock: Callable[[], float]) -> bool:
    """Remove an upload if it is still due. Raises BlockingIOError if it is in use."""
    directory, name = os.path.split(path)
    with foreign.locked(directory, name, must_exist=True):
        # A byte that came in the meantime does not change when it expires; a finish does.
        if not _is_due(path, finished, clock()):
            return False
        for each in (path, f"{path}.info"):
            with suppress(FileNotFoundError):
                os.unlink(each)
    return True


def _is_due(path: str, finished: bool, now: float) -> bool:
    info = read(path, strict=True)
    if info is None or info.expire_after is None or info.created_at + info.expire_after > now:
        return False
    return finished or info.is_partial or offset_of(info) != info.length


def offset_of(info: UploadInfo) -> int:
    """The bytes of an upload by the router's record."""
    return 0 if info.counted is None else info.counted.offset


def read(path: str, *, strict: bool = False) -> UploadInfo | None:
    """The router's record of the upload with data file `path`; `expire_after` is counted from `created_at`.

    None for one that is not there and, unless `strict`, for one that is not the router's. Raises StorageError then.
    """
    try:
        document = json.loads(read_record(f"{path}.info")[0])
        if foreign.layout_of(document) != "tuspyserver":
            raise StorageError(f"{path}.info is not a record of tuspyserver's")
        created = foreign.seconds(document["created_at"]) or 0.0
        return foreign.read_tuspyservers(
            document, upload_id=os.path.basename(path), changed_at=created
        )
    except FileNotFoundError:
        return None
    except (StorageError, *MALFORMED, ProtocolError) as problem:
        if strict:
            raise StorageError(f"{path}.info: {problem}") from problem
        return None


def records(root: str) -> Iterator[str]:
    """Yield the paths of all uploads that have a record, without the suffix. Unreadable directories are skipped."""

    def passed_over(problem: OSError) -> None:
        skip_entry(os.path.relpath(problem.filename, root), problem)

    for directory, below, names in os.walk(root, onerror=passed_over):
        below[:] = [name for name in below if name not in (STATE_DIRECTORY, foreign.LOCKS)]
        for name in names:
            if name.endswith(".info"):
                yield os.path.join(directory, name.removesuffix(".info"))
