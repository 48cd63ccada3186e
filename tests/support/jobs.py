"""A worker or a scheduler for tests, as an operator runs it beside a server."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

from tests.support import preloaded
from tests.support.server import PROGRAM, environment
from tests.support.waiting import wait_until


class Job:
    """`tusd-py worker` or `scheduler` as an operator runs it. `lines` holds its standard error."""

    def __init__(
        self,
        name: str,
        *flags: str,
        env: Mapping[str, str],
        program: tuple[str, ...] = PROGRAM,
    ) -> None:
        self.name = name
        self.lines: list[str] = []
        self.process: preloaded.Process
        if program == PROGRAM and preloaded.can_start(env):
            self.process = preloaded.start(
                [name, *flags], env=environment(env), cwd=Path.cwd(), with_stdout=False
            )
        else:
            self.process = subprocess.Popen(
                [*program, name, *flags],
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for_lines(self, text: str, count: int = 1) -> None:
        """Wait until `count` lines contain `text`."""
        wait_until(lambda: sum(text in line for line in list(self.lines)) >= count, repr(text))

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal and wait for the end; see :meth:`wait`."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and all that was written to standard error."""
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=60)
        return code, "".join(self.lines)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=60)
        self._reader.join(timeout=60)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as pipe:
            self.lines.extend(line.decode(errors="replace") for line in pipe)
