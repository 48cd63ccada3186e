"""An application that mounts the uploads, run by a real ASGI server in a process of its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tests.support import ports
from tests.support.server import ROOT, ServerProcess
from tests.support.waiting import wait_until

UVICORN = ("-m", "uvicorn", "example:app", "--port", "{port}")
GUNICORN = (
    *("-m", "gunicorn", "example:app", "--bind", "127.0.0.1:{port}"),
    *("--worker-class", "uvicorn_worker.UvicornWorker"),
)
HYPERCORN = ("-m", "hypercorn", "example:app", "--bind", "127.0.0.1:{port}")

_LISTENING = re.compile(r"(?:[Rr]unning on|Listening at:) (http://\S+)")


class Application(ServerProcess):
    """`code`, stored as `example.py` unless it is there, keeps its uploads in `./uploads` and serves them below /files/.

    ``processes``: how many of them have to start. ``flags`` are those of the program.
    """

    def __init__(
        self,
        directory: Path,
        code: str | None,
        *flags: str,
        program: tuple[str, ...] = UVICORN,
        env: Mapping[str, str] | None = None,
        processes: int = 1,
    ) -> None:
        directory.mkdir(exist_ok=True)
        if code is not None:
            (directory / "example.py").write_text(code)
        # Where the package is not installed, as with the oldest dependencies, its path is the checkout's.
        paths = [directory, ROOT, ROOT / "hooks", ROOT / "workers"]
        env = {"PYTHONPATH": os.pathsep.join(map(str, paths)), **(env or {})}
        super().__init__(directory / "uploads", *flags, env=env, program=program)
        self.started = re.compile("Application startup complete")
        self._processes = processes

    def close(self) -> None:
        """In order, as whoever kills the first process leaves the others behind."""
        if self.running:
            self.terminate()
        super().close()

    @property
    def base_path(self) -> str:
        return "/files/"

    @property
    def origin(self) -> str:
        """The URL of the application, without a slash at its end."""
        return f"http://{self.host}:{self.port}"

    def _command(self) -> list[str]:
        parts = (part.format(port=self.port) for part in self.program)
        return [sys.executable, *parts, *self.flags]

    def _wait_for_url(self, mark: int, timeout: float) -> str:
        found = self._wait(_LISTENING, timeout, mark)
        at = urlsplit(found[1])
        for _ in range(self._processes if self.program is not HYPERCORN else 0):
            self._wait(self.started, timeout, mark)
            lines = enumerate(self.lines[mark:], mark)
            mark = 1 + next(number for number, line in lines if self.started.search(line))
        # The processes of uvicorn say that they are started before they listen.
        wait_until(lambda: ports.is_open(at.port or 0), "it to listen", timeout)
        return f"http://{at.netloc}/files/"
