"""Unique names of processes, by which the death of a process is detected on the machine where it ran.

A remote lock expires some seconds after its holder died. A waiter on the same machine need not wait that long, as it can ask
the kernel. About processes on other machines or in other containers nothing is known.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_NOWHERE = "0"
"""The machine of processes whose death cannot be detected."""

_PID_NAMESPACE, _TIME_NAMESPACE = Path("/proc/self/ns/pid"), Path("/proc/self/ns/time")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ProcessName:
    """A name that no other process on any machine has.

    Attributes:
        machine: Identifies a boot of a kernel and a namespace of process ids.
        pid: The process id.
        started: Clock ticks from boot to the process's start, because ids are reused.
        nonce: Random digits.
    """

    machine: str
    pid: int
    started: int
    nonce: str

    @classmethod
    def of_this(cls) -> ProcessName:
        """Return a new name for this process. It must not be used across a fork."""
        pid = os.getpid()
        started = _started(pid)
        machine = _machine() if started is not None else _NOWHERE
        return cls(machine, pid, started or 0, secrets.token_hex(8))

    @classmethod
    def parse(cls, text: str) -> ProcessName | None:
        """Parse the result of `str`; returns None for anything else."""
        try:
            machine, pid, started, nonce = text.split("-")
            return cls(machine, int(pid), int(started), nonce)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.machine}-{self.pid}-{self.started}-{self.nonce}"

    def is_gone(self) -> bool:
        """Return whether the process is certain to be dead; False if it lives or ran elsewhere."""
        if self.machine == _NOWHERE or self.machine != _machine() or self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            # It belongs to another user, so it exists.
            pass
        started = _started(self.pid)
        return (started is not None and started != self.started) or _is_dead(self.pid)


@cache
def _machine() -> str:
    """Return the id of this machine and process namespace; _NOWHERE if unknown."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            # The /proc of another namespace: the ids in it are not ours.
            return _NOWHERE
        # Copies of a virtual machine may share a boot id, but hardly a host name as well.
        parts = [
            _BOOT_ID.read_text("ascii"),
            os.uname().nodename,
            str(_PID_NAMESPACE.stat().st_ino),
        ]
        if _TIME_NAMESPACE.exists():
            parts.append(str(_TIME_NAMESPACE.stat().st_ino))
    except (OSError, ValueError):
        return _NOWHERE
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _status(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat from the third on; None if it cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return None
    # The second field is a name in parentheses that may have anything in it.
    fields = text.rpartition(")")[2].split()
    return fields if len(fields) >= 20 else None


def _started(pid: int) -> int | None:
    fields = _status(pid)
    return None if fields is None else int(fields[19])


def _is_dead(pid: int) -> bool:
    """Return whether a process is a zombie without running threads."""
    fields = _status(pid)
    return fields is not None and fields[0] in "ZX" and int(fields[17]) <= 1
