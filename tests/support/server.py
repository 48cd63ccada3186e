"""A real server process for tests: started, killed, restarted, with its log lines.

Nothing here looks into the server: it is a process with a port, a directory, a log and an exit
code. Waiting is always for something that happens (a log line, the process's end), never for time
to pass.
"""

from __future__ import annotations

import json
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
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import urlsplit

from tests.support import ports, preloaded
from tests.support.bucket import STORE, Prefix
from tests.support.waiting import wait_until
from tests.support.wire import Connection

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "tusd_py")
"""The command line of this checkout."""
START_TIMEOUT = 60.0
"""Seconds for a server to begin to listen. Far more than it takes, as test machines are busy."""

STOP_TIMEOUT = 60.0

WITHOUT_DIRECT_BODIES = bool(os.environ.get("TEST_WITHOUT_DIRECT_BODIES"))
"""Whether direct bodies are disabled in this run of the tests; tests of direct bodies are then skipped."""

_URL = re.compile(r"Uploads at (\S+)")

started: list[ServerProcess] = []
"""Servers that tests of this process have started; read by conftest when a test fails."""


class ServerFailed(AssertionError):
    """The server ended, or the expected line did not come in time. Contains its log."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a server: that of the tests without ``TUSD_…``."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("TUSD_")}
    paths = [str(ROOT), str(ROOT / "hooks"), str(ROOT / "workers"), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    env["PYTHONUNBUFFERED"] = "1"
    # Most tests create the same thing many times; those about duplicates ask for them.
    env["TUSD_DUPLICATES"] = "off"
    # Two more processes for every server: those about them ask for them.
    env["TUSD_JOBS"] = "off"
    # On a busy machine Redis may answer late, which must not count as an outage. Tests of a Redis that does not answer set
    # their own time-out.
    env["TUSD_REDIS_TIMEOUT"] = "20s"
    # The other way that large bodies may take, for a whole run of the tests.
    if WITHOUT_DIRECT_BODIES:
        env["TUSD_DISABLE_DIRECT_BODIES"] = "true"
    env.update(extra or {})
    return env


class ServerProcess:
    """``python -m tusd_py serve`` on a port of its own.

    ``flags`` are appended to the command line. After :meth:`start`, ``port`` and ``url`` (of the
    collection, with the trailing slash) are known; :meth:`restart` uses the same port and
    directory again. ``lines`` holds standard error, ``output`` standard output, line by line.
    """

    def __init__(
        self,
        upload_dir: Path,
        *flags: str,
        env: Mapping[str, str] | None = None,
        port: int = 0,
        host: str = "127.0.0.1",
        prefix: tuple[str, ...] = (),
        program: tuple[str, ...] = PROGRAM,
    ) -> None:
        """``prefix``: a program that gets the server's command as its arguments and becomes it.

        ``program``: the command line of another installation.
        """
        self.upload_dir = upload_dir
        self.flags = flags
        self.env = dict(env or {})
        self.bucket: Prefix | None = None
        if STORE != "file" and "--s3-bucket" not in flags:
            self.bucket = Prefix(upload_dir)
            self.flags = (*self.bucket.flags, *flags)
            self.env = {**self.bucket.env, **self.env}
        self.host = host
        self.port = port
        self.url = ""
        self.prefix = prefix
        self.program = program
        self.lines: list[str] = []
        self.output: list[str] = []
        self._process: preloaded.Process | None = None
        self._readers: list[threading.Thread] = []
        self._news = threading.Condition()
        self._mark = 0
        self._release_port: Callable[[], object] = lambda: None

    # -- starting and ending -------------------------------------------------------------------

    def launch(self) -> Self:
        """Start the process without waiting (for servers that shall fail)."""
        assert self._process is None or self._process.poll() is not None, "is still running"
        command, env, cwd = self._command(), environment(self.env), self.upload_dir.parent
        is_ours = command[: len(PROGRAM)] == list(PROGRAM) and not self.prefix
        if is_ours and preloaded.can_start(self.env):
            self._process = preloaded.start(command[len(PROGRAM) :], env=env, cwd=cwd)
        else:
            self._process = subprocess.Popen(
                [*self.prefix, *command],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
            )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._collect, args=(pipe, lines), daemon=True)
            for pipe, lines in (
                (self._process.stdout, self.output),
                (self._process.stderr, self.lines),
            )
        ]
        for reader in self._readers:
            reader.start()
        if self not in started:
            started.append(self)
        return self

    def start(self, timeout: float = START_TIMEOUT) -> Self:
        """Start the process and wait until it accepts connections."""
        mark = len(self.lines)
        self.launch()
        self.url = self._wait_for_url(mark, timeout)
        self.port = urlsplit(self.url).port or self.port
        self._release_port()
        return self

    def kill9(self) -> None:
        """Send SIGKILL, and wait for the end."""
        self.process.kill()
        self._ended(STOP_TIMEOUT)

    def signal(self, number: int) -> None:
        """Send a signal and return at once."""
        self.process.send_signal(number)

    def terminate(self, timeout: float = STOP_TIMEOUT) -> int:
        """Send SIGTERM, wait for the end, and return the exit code."""
        self.process.terminate()
        return self._ended(timeout)

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """Wait for the process to end by itself, and return the exit code."""
        return self._ended(timeout)

    def restart(self) -> Self:
        """Start again (after :meth:`kill9` or :meth:`terminate`) on the same directory and port."""
        return self.start()

    def close(self) -> None:
        """End the process at once, whatever its state."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self._ended(STOP_TIMEOUT)
        self._release_port()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- looking at it -------------------------------------------------------------------------

    @property
    def process(self) -> preloaded.Process:
        assert self._process is not None, "was never started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def base_path(self) -> str:
        """The collection's path, with the trailing slash."""
        return urlsplit(self.url).path

    @property
    def address(self) -> tuple[str, int]:
        return (self.host, self.port)

    def log(self) -> str:
        """The server's standard output and standard error."""
        return "\n".join([*self.output, *self.lines])

    def mark_lines(self) -> None:
        """Set the start of :meth:`lines_since_mark`."""
        self._mark = len(self.lines)

    def lines_since_mark(self) -> list[str]:
        return self.lines[self._mark :]

    def wait_for_line(self, pattern: str, timeout: float = 60.0, since: int = 0) -> re.Match[str]:
        """Wait for a line of standard error that matches, from line number ``since`` on.

        Raises ServerFailed when the process ends without it, or when ``timeout`` seconds pass.
        """
        return self._wait(re.compile(pattern), timeout, since)

    def wait_for_first_sweep(self) -> None:
        """Wait for the end of the sweep with which it starts, so that this does not find what a test prepares.

        Of a new directory of files only: a later start's has the same sign.
        """
        wait_until((self.upload_dir / ".tusd-py/swept").exists, "the first sweep")

    def json_lines(self) -> list[dict[str, object]]:
        """The lines of standard error that are JSON objects (``--log-format json``)."""
        found: list[dict[str, object]] = []
        for line in list(self.lines):
            if line.startswith("{"):
                value = json.loads(line)
                assert isinstance(value, dict)
                found.append(value)
        return found

    def memory(self) -> int:
        """Memory of the process in bytes (proportional share, by smaps_rollup)."""
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def processor_seconds(self) -> float:
        """Processor time of the process in seconds, with a resolution of 10 ms."""
        stat = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def open_sockets(self) -> int:
        """The number of the process's descriptors that are sockets."""
        fds = Path(f"/proc/{self.pid}/fd")
        count = 0
        for fd in fds.iterdir():
            try:
                count += os.readlink(fd).startswith("socket:")
            except FileNotFoundError:
                continue
        return count

    def stored(self, upload_id: str) -> bytes:
        """The bytes of an upload, as they are stored."""
        if self.bucket is not None:
            return self.bucket.stored(upload_id)
        return self.data_file(upload_id).read_bytes()

    def unverified(self) -> int:
        """Bytes in memory and in files without a name: where a bucket's server keeps chunks with a checksum."""
        if self.bucket is None:
            return 0
        with Connection(self.address) as connection:
            page = connection.request("GET", "/metrics").text
        (memory,) = re.findall(r"^tusd_s3_spool_bytes (\S+)$", page, re.MULTILINE)
        total = int(float(memory))
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if os.readlink(descriptor).endswith(" (deleted)"):
                    total += descriptor.stat().st_size
        return total

    def record(self, upload_id: str) -> dict[str, object]:
        """The record of an upload."""
        if self.bucket is not None:
            return self.bucket.record(upload_id)
        value = json.loads(self.info_file(upload_id).read_bytes())
        assert isinstance(value, dict)
        return value

    def uploads(self) -> list[str]:
        """The ids of all uploads that are stored."""
        if self.bucket is not None:
            return self.bucket.uploads()
        names = (entry.name for entry in self.upload_dir.iterdir() if entry.is_file())
        return sorted(name for name in names if not name.endswith(".info"))

    def data_file(self, upload_id: str) -> Path:
        return self.upload_dir / upload_id

    def info_file(self, upload_id: str) -> Path:
        return self.upload_dir / f"{upload_id}.info"

    # -- inside --------------------------------------------------------------------------------

    def _command(self) -> list[str]:
        return [
            *(*self.program, "serve"),
            *self._listening(),
            *("--upload-dir", str(self.upload_dir)),
            *self.flags,
        ]

    def _listening(self) -> tuple[str, ...]:
        """Flags for the address, unless the flags name a Unix socket."""
        if "--unix-sock" in self.flags:
            return ()
        return ("--host", self.host, "--port", str(self.port))

    def _wait_for_url(self, mark: int, timeout: float) -> str:
        ready = re.compile(_URL.pattern + r'|"event": ?"listening"')
        line = self._wait(ready, timeout, mark).string
        if line.startswith("{"):
            url = json.loads(line)["url"]
            assert isinstance(url, str)
            return url
        found = _URL.search(line)
        assert found is not None
        return found[1]

    def _wait(self, pattern: re.Pattern[str], timeout: float, since: int) -> re.Match[str]:
        deadline = time.monotonic() + timeout
        seen = since
        with self._news:
            while True:
                while seen < len(self.lines):
                    match = pattern.search(self.lines[seen])
                    seen += 1
                    if match is not None:
                        return match
                if not any(reader.is_alive() for reader in self._readers):
                    raise ServerFailed(f"ended without {pattern.pattern!r}:\n{self.log()}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise ServerFailed(f"{timeout} s without {pattern.pattern!r}:\n{self.log()}")
                # The reader's end is announced as well; the bound is for a reader that dies.
                self._news.wait(min(left, 1.0))

    def _collect(self, pipe: IO[bytes], lines: list[str]) -> None:
        with pipe:
            for raw in pipe:
                with self._news:
                    lines.append(raw.decode(errors="replace").rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def _ended(self, timeout: float) -> int:
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"still running after {timeout} s:\n{self.log()}") from None
        self._keep_port()
        for reader in self._readers:
            reader.join(timeout)
        return code

    def _keep_port(self) -> None:
        """Reserve its port until it listens again."""
        self._release_port()
        if self.port and self._listening():
            with suppress(OSError):
                holder = ports.reserve(self.host, self.port)
                self._release_port = weakref.finalize(self, holder.close)
