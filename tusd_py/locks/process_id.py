"""Names of processes, by which a process that died without a word is recognised on the machine where it ran.

A lock that lives elsewhere runs out by itself some seconds after its holder died. Whoever waits for it on the same machine
need not: the kernel knows. Not for: processes of other machines or containers, about which nothing is known here.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_NOWHERE = "0"
"""The machine of processes that cannot be recognised."""

_PID_NAMESPACE, _TIME_NAMESPACE = Path("/proc/self/ns/pid"), Path("/proc/self/ns/time")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ProcessName:
    """A process, as no other on any machine is called.

    machine: stands for a boot of a kernel and the part of it in which process ids have the same meaning. started: clock ticks
    after that boot, as ids are used again. nonce: random.
    """

    machine: str
    pid: int
    started: int
    nonce: str

    @classmethod
    def of_this(cls) -> ProcessName:
        """A new name for this process. Not to be made before a fork and used after it."""
        pid = os.getpid()
        started = _started(pid)
        machine = _machine() if started is not None else _NOWHERE
        return cls(machine, pid, started or 0, secrets.token_hex(8))

    @classmethod
    def parse(cls, text: str) -> ProcessName | None:
        """What `str` made; None for anything else."""
        try:
            machine, pid, started, nonce = text.split("-")
            return cls(machine, int(pid), int(started), nonce)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.machine}-{self.pid}-{self.started}-{self.nonce}"

    def is_gone(self) -> bool:
        """Whether it is certain that this process does nothing any more. False if it lives, or lives elsewhere."""
        if self.machine == _NOWHERE or self.machine != _machine() or self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            # It is somebody else's, so it is there.
            pass
        started = _started(self.pid)
        return (started is not None and started != self.started) or _is_dead(self.pid)


@cache
def _machine() -> str:
    """What stands for the place in which process ids have a meaning; _NOWHERE if that cannot be told."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            # The /proc of another namespace: the ids in it are not ours.
            return _NOWHERE
        # Copies of a virtual machine may have a boot id in common, but hardly a host name too.
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
    """The fields of a process' status from the third on ("proc_pid_stat"), None if they cannot be read."""
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
    """Whether it has ended and only its parent does not know yet. Not while one of its threads still runs."""
    fields = _status(pid)
    return fields is not None and fields[0] in "ZX" and int(fields[17]) <= 1
