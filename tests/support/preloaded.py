"""Processes of `tusd-py` that are forked from one which has loaded the program.

To start the interpreter and to import everything takes longer than most tests. A process that is begun here has a pid, pipes,
signals and an exit code like any other; it only has loaded before what it would load first.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Protocol

ROOT = Path(__file__).resolve().parents[2]
STATUS = struct.Struct("i")
"""What is told of a process first: its pid; and later its exit code."""
_SERVER = (
    "tusd_py.cli.app",
    "tusd_py.cli.serve",
    "tusd_py.process.server",
    "tusd_py.locks.redis",
    "tusd_py.telemetry.prometheus",
)
MODULES = {
    "serve": _SERVER,
    "serve in a bucket": (*_SERVER, "tests.support.warm"),
    "worker": ("tusd_py.cli.app", "tusd_workers.worker", "tusd_workers.current"),
    "scheduler": ("tusd_py.cli.app", "tusd_workers.scheduler"),
    "others": (
        *(f"tusd_py.cli.{each}" for each in ("app", "sweep", "uploads", "events", "status")),
        "tusd_py.service.connect",
    ),
}
"""What is loaded for a command."""
_CANNOT_BE_CHANGED = ("PYTHON", "LD_", "MALLOC_", "OPENSSL_", "SSL_", "COVERAGE")
"""Beginnings of variables that only count when an interpreter starts."""


class Process(Protocol):
    """What tests use of `subprocess.Popen`."""

    pid: int
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


def can_start(env: Mapping[str, str]) -> bool:
    """Whether a process with these changes of its environment can be forked: not if an interpreter reads them at its start."""
    return (
        hasattr(os, "pidfd_open")
        and not os.environ.get("TEST_COLD_STARTS")
        and not any(name.startswith(_CANNOT_BE_CHANGED) for name in env)
    )


def start(
    arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, with_stdout: bool = True
) -> ForkedProcess:
    """Start `tusd-py` with arguments. env: all of it. Without `with_stdout` nobody reads standard output."""
    name = arguments[0] if arguments and arguments[0] in MODULES else "others"
    if name in {"serve", "others"} and "--s3-bucket" in arguments:
        name = "serve in a bucket"
    return _loaded(name).start(arguments, env, cwd, with_stdout=with_stdout)


@cache
def _loaded(name: str) -> _Loaded:
    return _Loaded(MODULES[name])


class _Loaded:
    """The process that has loaded modules. Ends with this one."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        paths = [str(ROOT), str(ROOT / "hooks"), str(ROOT / "workers")]
        env = {name: value for name, value in os.environ.items() if not name.startswith("TUSD_")}
        env |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.preload", str(theirs.fileno()), *modules],
                env=env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

        atexit.register(self._end)

    def _end(self) -> None:
        self._ours.close()
        self._process.wait()

    def start(
        self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path, *, with_stdout: bool
    ) -> ForkedProcess:
        out, theirs_out = os.pipe() if with_stdout else (None, os.open(os.devnull, os.O_WRONLY))
        err, theirs_err = os.pipe()
        status, theirs_status = os.pipe()
        given = [theirs_out, theirs_err, theirs_status]
        message = json.dumps([list(arguments), dict(env), str(cwd)]).encode()
        try:
            with self._lock:
                socket.send_fds(self._ours, [message], given)
        finally:
            for descriptor in given:
                os.close(descriptor)
        stdout = None if out is None else os.fdopen(out, "rb")
        return ForkedProcess(stdout, os.fdopen(err, "rb"), os.fdopen(status, "rb"))


class ForkedProcess:
    """See `Process`."""

    def __init__(self, stdout: IO[bytes] | None, stderr: IO[bytes], status: IO[bytes]) -> None:
        self.stdout = stdout
        self.stderr: IO[bytes] | None = stderr
        self.returncode: int | None = None
        self._status = status
        self._news = threading.Condition()
        (self.pid,) = STATUS.unpack(status.read(STATUS.size))
        self._handle: int | None = None
        # One that has ended already needs no handle that keeps its pid from being another one's.
        with suppress(ProcessLookupError):
            self._handle = os.pidfd_open(self.pid)
        threading.Thread(target=self._read_status, daemon=True).start()

    def _read_status(self) -> None:
        with self._status:
            told = self._status.read(STATUS.size)
        if self._handle is not None:
            os.close(self._handle)
        with self._news:
            (self.returncode,) = STATUS.unpack(told) if told else (-signal.SIGKILL,)
            self._news.notify_all()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        with self._news:
            if not self._news.wait_for(lambda: self.returncode is not None, timeout):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, sig: int) -> None:
        with self._news:
            if self.returncode is None:
                # Not after its end: the pid may be another one's.
                try:
                    os.kill(self.pid, sig)
                except ProcessLookupError:
                    return

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
