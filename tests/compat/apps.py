"""FastAPI applications in processes of their own, with tuspyserver's router or with ours."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import metadata
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.support import ports
from tests.support.server import environment
from tests.support.waiting import wait_until

Router = Literal["theirs", "ours"]
ROUTERS: tuple[Router, ...] = ("theirs", "ours")

THEIRS = "from tuspyserver import create_tus_router"
OURS = "from tusd_py.compat.tuspyserver import create_tus_router"

_LISTENING = re.compile(r"running on (http://\S+)")
_FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PATIENCE = 60.0


def readme_block(*words: str) -> str:
    """The one Python example of the README of the installed tuspyserver in which all `words` stand."""
    readme = metadata("tuspyserver")["Description"]
    (found,) = (code for code in _FENCE.findall(readme) if all(word in code for word in words))
    assert isinstance(found, str)
    return found


class AppProcess:
    """`example:app` under uvicorn. lines: what it printed, on both ways out."""

    def __init__(
        self,
        directory: Path,
        code: str,
        router: Router = "ours",
        *flags: str,
        env: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        """code: of the application, for tuspyserver; with `router` "ours" one import is changed."""
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.url = ""
        self.port = port
        self.lines: list[str] = []
        self._flags = flags
        self._env = dict(env or {})
        self._process: subprocess.Popen[str] | None = None
        self._news = threading.Condition()
        self._reader = threading.Thread()
        self._release_port: Callable[[], object] = lambda: None
        (directory / "example.py").write_text(
            code.replace(THEIRS, OURS) if router == "ours" else code
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self.end(signal.SIGTERM)

    def start(self) -> Self:
        """Starts it and waits until it listens; the second time on the same port."""
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "uvicorn",
                "example:app",
                "--port",
                str(self.port),
                *self._flags,
            ],
            cwd=self.directory,
            env=environment({"PYTHONPATH": str(self.directory), **self._env}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        since = len(self.lines)
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        self.url = self.wait_for(_LISTENING.pattern, since)[1]
        self.port = int(self.url.rpartition(":")[2])
        # With several processes the first one says so before any of them listens.
        wait_until(lambda: ports.is_open(self.port), "it to listen", _PATIENCE)
        self._release_port()
        return self

    def end(self, number: signal.Signals) -> int:
        """Ends it by a signal, and reserves its port until it listens again; the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(_PATIENCE)
        # Processes of several that were killed may listen a little longer.
        with suppress(OSError):
            holder = ports.reserve(port=self.port)
            self._release_port = weakref.finalize(self, holder.close)
        self._reader.join(_PATIENCE)
        self._process = None
        return code

    def kill9(self) -> None:
        """Ends it without giving it a chance to do anything more."""
        self.end(signal.SIGKILL)

    def wait_for(self, pattern: str, since: int = 0) -> re.Match[str]:
        """The first line that matches, past or to come."""
        deadline = time.monotonic() + _PATIENCE
        with self._news:
            while True:
                for line in self.lines[since:]:
                    if found := re.search(pattern, line):
                        return found
                alive = self._reader.is_alive()
                assert alive, f"ended without {pattern!r}:\n" + "\n".join(self.lines)
                assert time.monotonic() < deadline, f"no {pattern!r}:\n" + "\n".join(self.lines)
                self._news.wait(0.2)

    def told(self, word: str) -> list[str]:
        """The rests of the lines that begin with `word`."""
        return [line.removeprefix(f"{word} ") for line in self.lines if line.startswith(f"{word} ")]

    def steps(self, method: str, requests: int) -> list[str]:
        """All that the application said until uvicorn logged that many requests of a method."""
        deadline = time.monotonic() + _PATIENCE
        logged = f'"{method} '
        while sum(logged in line for line in self.lines) < requests:
            assert time.monotonic() < deadline, "\n".join(self.lines)
            with self._news:
                self._news.wait(0.2)
        return [line for line in self.lines if not line.startswith("INFO")]

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()


def path_in(directory: Path, url: str) -> Path:
    """The path of an upload's bytes."""
    return directory / os.path.basename(url)
