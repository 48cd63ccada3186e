"""The servers that are measured: how each is had, started and stopped.

A server that cannot be had says why and is left out. All of them listen on 127.0.0.1 only and run with their defaults, except
where a body's size has to be allowed; their logs go to a file.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.processes import on_processors

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "bench" / "peers"
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 15.0


class Unavailable(Exception):
    """The server cannot be had here; the message says why, and what would help."""


class Server:
    """A server as the benchmark knows it. name: on the command line and in the results; base: path of the collection."""

    name = ""
    title = ""
    base = "/files/"
    only: tuple[str, ...] = ()
    """Groups of scenarios that it is for; empty for all but those in a bucket."""
    protocol = "tus"
    """One of `dialects.DIALECTS`."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that it needs."""
        return {}

    def begin(self, directory: Path, *, counts: bool) -> AbstractContextManager[None]:
        """Starts what it needs for one measurement, with its data in `directory`. counts: count `requests`."""
        return nullcontext()

    @property
    def requests(self) -> int | None:
        """Requests to an object store so far, if they are counted; None for servers that have none."""
        return None

    def prepare(self, work: Path) -> str:
        """Installs what is missing below `work`; returns the version. Raises Unavailable."""
        raise NotImplementedError

    def command(self, directory: Path, port: int) -> list[str]:
        """The command line that serves `directory`."""
        raise NotImplementedError


class Ours(Server):
    """This checkout. flags: besides directory and port. "As peers" promises no more than they do: nothing durable, and no
    duplicates looked for.
    """

    def __init__(self, name: str, title: str, *flags: str) -> None:
        self.name = name
        self.title = title
        self.flags = flags

    def prepare(self, work: Path) -> str:
        said = _output([sys.executable, "-m", "tusd_py", "--version"])
        return f"{said} {' '.join(self.flags)}".strip()

    def command(self, directory: Path, port: int) -> list[str]:
        return [sys.executable, "-m", "tusd_py", *self.serve(directory, port)]

    def serve(self, directory: Path, port: int) -> list[str]:
        """Return the command and its flags, without the program."""
        place = ["--host", "127.0.0.1", "--port", str(port), "--upload-dir", str(directory)]
        return ["serve", *place, *self.flags]


class OursByIetf(Ours):
    """The same, by the other protocol."""

    only = ("large", "chunks", "checksum", "small")
    protocol = "ietf"


class Before(Ours):
    """Another installation of tusd-py, usually the version before, by the path of its Python."""

    def prepare(self, work: Path) -> str:
        python = os.environ.get("TUSD_PY_BEFORE")
        if not python:
            raise Unavailable("set TUSD_PY_BEFORE to the path of the Python of its environment")
        # -I: neither what lies in the working directory, nor on PYTHONPATH.
        self._program = [python, "-I", "-m", "tusd_py"]
        return f"{_output([*self._program, '--version'])} {' '.join(self.flags)}".strip()

    def command(self, directory: Path, port: int) -> list[str]:
        return [*self._program, *self.serve(directory, port)]


class Floor(Server):
    """The bare copy loop."""

    name = "floor"
    title = "bare copy loop"

    def prepare(self, work: Path) -> str:
        return f"Python {sys.version.split()[0]}"

    def command(self, directory: Path, port: int) -> list[str]:
        return [sys.executable, "-m", "bench.floor", str(directory), str(port)]


class HashAlone(Server):
    """No server: SHA-256 over the same number of bytes."""

    name = "sha256"
    title = "hashing alone"
    only = ("checksum",)

    def prepare(self, work: Path) -> str:
        return f"Python {sys.version.split()[0]}"


class Tusd(Server):
    """tusd, by the path of its binary."""

    name = "tusd"
    title = "tusd"

    def prepare(self, work: Path) -> str:
        self._binary = _binary("TUSD_BIN", "tusd")
        return _output([self._binary, "-version"])

    def command(self, directory: Path, port: int) -> list[str]:
        place = ["-host", "127.0.0.1", "-port", str(port), "-upload-dir", str(directory)]
        return [self._binary, *place]


class Rustus(Server):
    """rustus. Its limit for a body is raised, as it is a quarter of a megabyte."""

    name = "rustus"
    title = "rustus"

    def prepare(self, work: Path) -> str:
        self._binary = _binary("RUSTUS_BIN", "rustus", "cargo install rustus --locked")
        return _output([self._binary, "--version"])

    def command(self, directory: Path, port: int) -> list[str]:
        place = ["--host", "127.0.0.1", "--port", str(port), "--max-body-size", str(1 << 31)]
        return [self._binary, *place, "--data-dir", str(directory), "--info-dir", str(directory)]


class TusNodeServer(Server):
    """npm's @tus/server with @tus/file-store."""

    name = "tus-node-server"
    title = "@tus/server"

    def prepare(self, work: Path) -> str:
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            raise Unavailable("node and npm are needed (Debian, Ubuntu: apt install nodejs npm)")
        self.node = node
        self.peer = _copy(PEERS / "node", work / "node")
        if not (self.peer / "node_modules" / "@tus" / "server").is_dir():
            _install([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], self.peer)
        tus = self.peer / "node_modules" / "@tus" / "server" / "package.json"
        found = re.search(r'"version": "([^"]+)"', tus.read_text())
        return f"{found[1] if found else '?'}, Node {_output([node, '--version'])}"

    def command(self, directory: Path, port: int) -> list[str]:
        return [self.node, str(self.peer / "server.mjs"), str(directory), str(port)]


class Tuspyserver(Server):
    """PyPI's tuspyserver under uvicorn with uvloop and httptools, in an environment of its own."""

    name = "tuspyserver"
    title = "tuspyserver"

    def prepare(self, work: Path) -> str:
        self._place = _copy(PEERS / "python", work / "python")
        self._python = self._place / "venv" / "bin" / "python"
        done = self._place / "venv" / ".installed"
        if not done.exists():
            _install([sys.executable, "-m", "venv", "--clear", "venv"], self._place)
            pip = [str(self._python), "-m", "pip", "--disable-pip-version-check", "install"]
            _install([*pip, "--quiet", "--require-hashes", "-r", "requirements.txt"], self._place)
            done.touch()
        code = "import importlib.metadata as m; print(m.version('tuspyserver'))"
        return _output([str(self._python), "-c", code])

    def command(self, directory: Path, port: int) -> list[str]:
        return [str(self._python), str(self._place / "server.py"), str(directory), str(port)]


def known() -> list[Server]:
    """Every server, in the order of the tables."""
    as_peers = ("--durability", "none", "--duplicates", "off")
    return [
        Ours("tusd-py", "tusd-py"),
        Ours("tusd-py-none", "tusd-py, as peers", *as_peers),
        OursByIetf("tusd-py-ietf", "tusd-py, by the IETF's protocol"),
        OursByIetf("tusd-py-ietf-none", "tusd-py, as peers, by the IETF's protocol", *as_peers),
        Before("before", "tusd-py, before"),
        Before("before-none", "tusd-py, before, as peers", *as_peers),
        Tusd(),
        Rustus(),
        TusNodeServer(),
        Tuspyserver(),
        Floor(),
        HashAlone(),
    ]


def _binary(variable: str, name: str, help_text: str = "") -> str:
    path = os.environ.get(variable) or shutil.which(name)
    if path is None or not os.access(path, os.X_OK):
        also = f", or `{help_text}`" if help_text else ""
        what = f"{path} cannot be run" if path else "no such program on PATH"
        raise Unavailable(f"{what}: set {variable} to the path of a binary{also}")
    return path


def _output(command: list[str]) -> str:
    """The first line that a program writes."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
        )
    except (OSError, subprocess.SubprocessError) as problem:
        raise Unavailable(f"{command[0]} does not run: {problem}") from problem
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def _copy(source: Path, place: Path) -> Path:
    """A peer's files where it may install things; anew if they have changed."""
    names = [path.name for path in source.iterdir() if path.is_file()]
    if any(
        not (place / name).is_file() or (place / name).read_bytes() != (source / name).read_bytes()
        for name in names
    ):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for name in names:
            shutil.copy(source / name, place / name)
    return place


def _install(command: list[str], place: Path) -> None:
    try:
        subprocess.run(command, cwd=place, check=True, capture_output=True, text=True, timeout=600)
    except subprocess.CalledProcessError as problem:
        last = (problem.stderr or "").strip().rpartition("\n")[2]
        raise Unavailable(f"{Path(command[0]).name} failed: {last}") from problem
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Unavailable(f"{Path(command[0]).name} failed: {problem}") from problem


class StartFailed(Exception):
    """A server did not begin to listen; carries the end of its log."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says of itself. extensions: of tus that it offers."""

    extensions: frozenset[str]


class Running:
    """A server process on a free port: a context manager. cpus: where it may run; log: file for what it says."""

    def __init__(self, server: Server, directory: Path, *, cpus: set[int], log: Path) -> None:
        self.server = server
        self.directory = directory
        self.port = 0
        self._cpus = cpus
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the root of its processes."""
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process.pid

    def __enter__(self) -> Self:
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            # Until the server listens no other program gets the port, but one that asks for it by number as the server does.
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.port = reserved.getsockname()[1]
            self._start()
            try:
                self._wait_until_it_listens()
            except StartFailed:
                self.stop()
                raise
        return self

    def _start(self) -> None:
        with self._log.open("wb") as log, on_processors(self._cpus):
            self._process = subprocess.Popen(
                self.server.command(self.directory, self.port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_environment(), **self.server.environment},
                cwd=ROOT,
                start_new_session=True,
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Asks it to end, and ends it if it does not."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def ask(self) -> Answer:
        """By OPTIONS."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            request = (
                f"OPTIONS {self.server.base} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
                "Tus-Resumable: 1.0.0\r\nConnection: close\r\n\r\n"
            )
            sock.sendall(request.encode())
            said = b""
            while b"\r\n\r\n" not in said and (data := sock.recv(65536)):
                said += data
        found = re.search(rb"(?i)\r\ntus-extension: *([^\r]*)", said)
        names = found[1].decode("latin-1").split(",") if found else []
        return Answer(frozenset(name.strip() for name in names))

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                ended = self._process is None or self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    said = self._log.read_text(errors="replace")[-500:].strip()
                    raise StartFailed(f"{self.server.name} did not start: {said}") from None
            time.sleep(0.02)


def _environment() -> dict[str, str]:
    """Ours, without what would configure the servers."""
    prefixes = ("TUSD_", "RUSTUS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    kept["PYTHONPATH"] = os.pathsep.join(str(ROOT / name) for name in (".", "hooks", "workers"))
    return kept
