"""A worker or a scheduler for tests, as an operator runs it beside a server."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping

from tests.support.server import environment


class Job:
    """`tusd-py worker` or `scheduler` as an operator runs it."""

    def __init__(self, name: str, *flags: str, env: Mapping[str, str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tusd_py", name, *flags],
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """The exit code and what it said."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=60)
