"""What processes cost: CPU seconds and memory of a process with all its descendants, and how busy the machine is besides.

Everything is read from the kernel (Linux only). Not for starting or ending processes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICK = 1.0 / os.sysconf("SC_CLK_TCK")
_CPUCLOCK_SCHED = 2
"""The kind of CPU clock that counts all threads of a process, those that have ended too, in nanoseconds."""


def tree(pid: int) -> list[int]:
    """The process and its living descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def cpu_seconds(pid: int) -> float:
    """CPU seconds that the tree of `pid` has used, including children that have ended."""
    total = 0.0
    for member in tree(pid):
        try:
            total += time.clock_gettime((~member << 3) | _CPUCLOCK_SCHED)
            total += sum(map(int, _stat_fields(member)[13:15])) * _TICK
        except OSError:
            continue
    return total


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the name, which may contain spaces: the 13th and 14th are ended children's time."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def forget_peaks(pid: int) -> None:
    """Lets `peak_memory` count from now on."""
    for member in tree(pid):
        try:
            Path(f"/proc/{member}/clear_refs").write_text("5")
        except OSError:
            continue


def peak_memory(pid: int) -> int:
    """Bytes: the sum of what each process of the tree held at most, whenever that was."""
    return _sum(pid, "status", "VmHWM")


def memory(pid: int) -> int:
    """Bytes that the tree holds now; what processes share is counted once."""
    return _sum(pid, "smaps_rollup", "Pss")


def _sum(pid: int, name: str, field: str) -> int:
    pattern = re.compile(rf"^{field}:\s+(\d+) kB", re.MULTILINE)
    total = 0
    for member in tree(pid):
        try:
            found = pattern.search(Path(f"/proc/{member}/{name}").read_text())
        except OSError:
            continue
        if found is not None:
            total += int(found[1]) * 1024
    return total


def busy_seconds() -> float:
    """CPU seconds that all processors together were busy, or taken away by the host, since the machine started."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) * _TICK


@contextmanager
def on_processors(cpus: set[int]) -> Iterator[None]:
    """What is started meanwhile runs on these processors only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def load_average() -> float:
    """How many processes wanted to run, averaged over the last minute."""
    return os.getloadavg()[0]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """CPU seconds up to a moment, and the moment (monotonic seconds)."""

    at: float
    server: float
    machine: float

    @classmethod
    def take(cls, server: int) -> Snapshot:
        """server: process id of the root of its tree."""
        return cls(time.perf_counter(), cpu_seconds(server), busy_seconds())
