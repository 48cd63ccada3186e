"""Servers and workers that are forked from a process that has loaded everything: for tests that kill one each.

They are real processes, but for the start of the interpreter, which takes longer than all that such a test does.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from tests.support.control import Page
from tests.support.server import START_TIMEOUT, ServerProcess, environment
from tests.support.tus import Tus
from tests.support.waiting import wait_until

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.clock", "tests.support.warm"])


def _run(arguments: tuple[str, ...], env: dict[str, str], log: str, page: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    with Path(log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Not before: a test's own clock is to stay as it is.
    from tests.support.clock import follow
    from tusd_py.cli import main

    follow(Page(Path(page)))

    sys.argv = ["tusd-py", *arguments]
    raise SystemExit(main())


class ForkedCommand:
    """A command with its log below `directory`. arguments: its name, and its options.

    page: sets its clock and has its system calls fail. ahead: seconds by which its clock is ahead from the beginning.
    """

    def __init__(
        self, directory: Path, *arguments: str, env: Mapping[str, str], ahead: float = 0.0
    ) -> None:
        directory.mkdir(parents=True)
        self._log = directory / "log"
        self.page = Page(directory / "control")
        self.page.shift = ahead
        self._process = _context.Process(
            target=_run,
            args=(arguments, environment(env), str(self._log), str(directory / "control")),
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return not self._process.is_alive()

    def wait(self, timeout: float = START_TIMEOUT) -> None:
        """Wait for the end."""
        self._process.join(timeout)
        assert self.has_ended, self.log()

    def stop(self) -> None:
        """Have it stand still."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, unless it was killed meanwhile."""
        if self._process.is_alive():
            os.kill(self.pid, signal.SIGCONT)

    def kill9(self) -> None:
        """Send SIGKILL, and wait for the end."""
        if self._process.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        self._process.join(START_TIMEOUT)

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


class ForkedServer(ForkedCommand):
    """A server on a free port; its directory is below `directory` unless `upload_dir` is another one."""

    base_path = "/files/"

    def __init__(
        self, directory: Path, *flags: str, env: Mapping[str, str], upload_dir: Path | None = None
    ) -> None:
        place = str(upload_dir or directory / "uploads")
        super().__init__(directory, "serve", "--upload-dir", place, "--port", "0", *flags, env=env)
        self.port = 0

    def wait_until_up(self) -> None:
        """Wait until it accepts connections."""
        wait_until(self.is_up, "the server to start", START_TIMEOUT)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.base_path}"

    def is_up(self) -> bool:
        """Whether it accepts connections. Fails if it has ended."""
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


class Servers:
    """Several servers, one of which is killed now and then. `kills`: how many. upload_dir: one for all of them."""

    def __init__(
        self,
        directory: Path,
        flags: tuple[str, ...],
        env: Mapping[str, str],
        *,
        count: int = 3,
        upload_dir: Path | None = None,
    ) -> None:
        self.kills = 0
        self._directory, self._flags, self._env = directory, flags, env
        self._upload_dir = upload_dir
        self._number = 0
        self.running = [self.start_another() for _ in range(count)]
        for server in self.running:
            server.wait_until_up()

    def start_another(self) -> ForkedServer:
        """A server that is starting, and not one of those that run yet."""
        self._number += 1
        place = self._directory / f"server-{self._number}"
        return ForkedServer(place, *self._flags, env=self._env, upload_dir=self._upload_dir)

    def any(self, dice: random.Random) -> ForkedServer:
        return dice.choice(self.running)

    def kill_one(self, dice: random.Random) -> None:
        """Kill one, and put another in its place."""
        following = self.start_another()
        following.wait_until_up()
        self.replace(dice.randrange(len(self.running)), following)

    def replace(self, place: int, following: ForkedServer) -> None:
        """Kill the one that is there, and put another in its place."""
        killed, self.running[place] = self.running[place], following
        killed.kill9()
        self.kills += 1

    def complaints(self) -> list[str]:
        """What the servers logged as errors, with what follows."""
        found: list[str] = []
        for log in sorted(self._directory.glob("server-*/log")):
            lines = log.read_text(errors="replace").splitlines()
            for number, line in enumerate(lines):
                if " ERROR " in line:
                    found += [str(log.parent.name), *lines[number : number + 40]]
        return found

    def close(self) -> None:
        for server in self.running:
            server.kill9()
