"""Servers that are forked from a process that has loaded everything: for tests that kill a server each.

They are real processes, but for the start of the interpreter, which takes longer than all that such a test does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from tests.support.server import START_TIMEOUT, ServerProcess, environment
from tests.support.tus import Tus
from tests.support.waiting import wait_until

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.s3.warm"])


def _run(arguments: tuple[str, ...], env: dict[str, str], log: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    with Path(log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from tusd_py.cli import main

    sys.argv = ["tusd-py", *arguments]
    raise SystemExit(main())


class ForkedCommand:
    """A command with its log below `directory`. arguments: its name, and its options."""

    def __init__(self, directory: Path, *arguments: str, env: Mapping[str, str]) -> None:
        directory.mkdir(parents=True)
        self._log = directory / "log"
        self._process = _context.Process(
            target=_run, args=(arguments, environment(env), str(self._log))
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def kill9(self) -> None:
        """Send SIGKILL, and wait for the end."""
        if self._process.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        self._process.join(START_TIMEOUT)

    @property
    def has_ended(self) -> bool:
        return not self._process.is_alive()

    def wait(self) -> None:
        """Wait for the end."""
        self._process.join(START_TIMEOUT)
        assert self.has_ended, self.log()

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


class ForkedServer(ForkedCommand):
    """A server on a free port with its directory and its log below `directory`."""

    base_path = "/files/"

    def __init__(self, directory: Path, *flags: str, env: Mapping[str, str]) -> None:
        place = ("--upload-dir", str(directory / "uploads"), "--port", "0")
        super().__init__(directory, "serve", *place, *flags, env=env)
        self.port = 0

    def wait_until_up(self) -> None:
        """Wait until it accepts connections."""
        wait_until(self._is_up, "the server to start", START_TIMEOUT)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.base_path}"

    def _is_up(self) -> bool:
        assert self._process.is_alive(), self.log()
        for line in self.log().splitlines():
            if "Uploads at http" in line:
                self.port = int(line.rpartition("/files/")[0].rpartition(":")[2])
        return self.port != 0

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def client(self) -> Tus:
        """A client that needs no more of its server than an address."""
        return Tus(cast(ServerProcess, self))
