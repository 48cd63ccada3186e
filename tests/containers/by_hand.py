"""The services of a compose file as processes of this machine, as close to containers as possible without an engine.

Where tests run as root, each process is nobody, sees a file system on which only its own directory can be written to (where
root may mount), and has no capability but to read what root has installed. Elsewhere they run as whoever runs the tests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

from tests.containers import described
from tests.s3.servers import SeaweedFS
from tests.support.ports import reserve
from tests.support.redis import binary
from tests.support.server import ROOT
from tests.support.waiting import wait_until

NOBODY = 65534
_READ = "-all,+dac_read_search"
# First it lets go of other tests' file systems, whose devices would stay in use as long as it runs.
_CONTAINED = """
awk '$1 ~ "^/dev/loop" { print $2 }' /proc/self/mounts | tac | while read -r at; do umount --lazy "$at" || true; done
for directory in "$1" "$2"; do mount --bind "$directory" "$directory"; done
if [ "$3" = tmp ]; then mount --bind "$2" /tmp; fi
mount -o remount,bind,ro /
shift 3
exec "$@"
"""
_APART = ["unshare", "--mount", "--propagation", "private"]
_PACKAGES = "(Debian, Ubuntu: apt install nginx-light redis-server util-linux)"


def program(name: str) -> str:
    """The path of a program. Fails with an instruction if it is missing."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert found, f"{name} is missing {_PACKAGES}"
    return found


@cache
def has_mounts_of_its_own() -> bool:
    """True if a process can have its own mounts, which is not possible in every container that runs the tests."""
    done = subprocess.run(
        [program(_APART[0]), *_APART[1:], "/bin/sh", "-ec", "mount -o remount,bind,ro /"],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


class Container:
    """A process with a directory for its data and one for what is temporary.

    own_tmp: the latter stands for /tmp, for programs that ask nobody where to put such files.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        data: Path,
        scratch: Path,
        *,
        own_tmp: bool = False,
    ) -> None:
        self._tmp = "tmp" if own_tmp else ""
        self.command = list(command)
        self.env = {**described.outer_environment(), **env, "TMPDIR": str(scratch)}
        self._places = (str(data), str(scratch))
        self.log = scratch / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._contained(self.command),
                env=self.env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        """Run a command in a service, like `docker compose exec`."""
        return subprocess.run(
            self._contained(command),
            env=self.env,
            cwd=ROOT,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def end(self, number: signal.Signals) -> int:
        """The exit code."""
        assert self.process is not None
        if number == signal.SIGKILL:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        return self.process.wait(60)

    def said(self) -> str:
        """All that it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def close(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(60)

    def _contained(self, command: Sequence[str]) -> list[str]:
        if os.getuid() != 0:
            return list(command)
        nobody = [program("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        nobody += ["--no-new-privs", f"--inh-caps={_READ}", f"--ambient-caps={_READ}"]
        if not has_mounts_of_its_own():
            return [*nobody, *command]
        return [
            *_APART,
            "/bin/sh",
            "-ec",
            _CONTAINED,
            "sh",
            *self._places,
            self._tmp,
            *nobody,
            *command,
        ]


class Stack:
    """All services: two servers behind the proxy, a worker, a scheduler, a Redis, and perhaps an object store.

    root: a directory for everything. file: the compose file.
    """

    def __init__(self, root: Path, file: Path = described.COMPOSE) -> None:
        self.root = root
        self._services = described.services(file)
        self._file = file
        self._weed = SeaweedFS(root / "objects")
        self.objects = self._objects() if "objects" in self._services else None
        self.uploads = own(root, "uploads")
        # Some of them are listened on much later, and again after a kill: no other program gets them until the end.
        replicas = self._services["server"]["deploy"]["replicas"]
        self._holders = [reserve() for _ in range(2 + replicas)]
        numbers: list[int] = [holder.getsockname()[1] for holder in self._holders]
        self.redis_port, self.proxy_port, *self.ports = numbers
        self.redis = self._redis()
        self.servers = [self._ours("server", f"server-{port}", port) for port in self.ports]
        self.worker = self._ours("worker", "worker")
        self.scheduler = self._ours("scheduler", "scheduler")
        self.proxy = self._proxy()

    @property
    def containers(self) -> dict[str, Container]:
        """All by name, in the order in which they depend on each other."""
        servers = {
            f"server-{port}": server for port, server in zip(self.ports, self.servers, strict=True)
        }
        return {
            **({} if self.objects is None else {"objects": self.objects}),
            "redis": self.redis,
            **servers,
            "worker": self.worker,
            "scheduler": self.scheduler,
            "proxy": self.proxy,
        }

    def start(self) -> None:
        """Each as soon as those are well that it depends on."""
        for name, container in self.containers.items():
            container.start()
            if name in ("objects", "redis") or name.startswith("server"):
                wait_until(lambda at=name: self.is_well(at), f"{name} to be well", timeout=120)  # type: ignore[misc]

    def close(self) -> None:
        for container in self.containers.values():
            container.close()
        # It was never started here, but holds the ports that it chose for its command.
        self._weed.stop()
        for holder in self._holders:
            holder.close()

    def is_well(self, name: str) -> bool:
        """Run the service's health check from the file."""
        service = self._services[name.partition("-")[0]]
        kind, *test = service["healthcheck"]["test"]
        assert kind == "CMD"
        done = self.containers[name].run(self._here(name, test))
        return done.returncode == 0

    def _here(self, name: str, command: Sequence[str]) -> list[str]:
        """A command of the file, with what differs here."""
        here = {":8080": f":{self.proxy_port}", ":8333": f":{self._weed.port}"}
        words = list(command)
        for there, port in here.items():
            words = [word.replace(there, port) for word in words]
        match words[0]:
            case "tusd-py":
                return [sys.executable, "-m", "tusd_py", *words[1:]]
            case "valkey-cli":
                return [program("redis-cli"), "-p", str(self.redis_port), *words[1:]]
            case "valkey-server":
                listening = ["--port", str(self.redis_port), "--bind", "127.0.0.1"]
                return [binary("valkey"), *words[1:], *listening, "--dir", str(self.root / "redis")]
            case "wget":
                code = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)"
                return [sys.executable, "-c", code, words[-1]]
        raise AssertionError(f"{name}: what is {words[0]}?")

    def _redis(self) -> Container:
        command = self._here("redis", self._services["redis"]["command"])
        return Container(command, {}, own(self.root, "redis"), own(self.root, "redis-tmp"))

    def _objects(self) -> Container:
        data, scratch = own(self.root, "objects"), own(self.root, "objects-tmp")
        service = self._services["objects"]
        assert service["entrypoint"] == ["weed"]
        # Ports of its own, and only on this machine: later flags win.
        own_program, _, *flags = self._weed.command()
        words = [
            word.replace("=/tmp/", f"={scratch}/").replace("=/data", f"={data}")
            for word in service["command"]
        ]
        ports = [flag for flag in flags if ".port" in flag or flag.startswith("-ip.bind")]
        command = [own_program, *words, *ports]
        return Container(command, service["environment"], data, scratch, own_tmp=True)

    def _ours(self, service: str, name: str, port: int | None = None) -> Container:
        env = described.environment_of(service, self._file)
        env["TUSD_UPLOAD_DIR"] = env["TUSD_UPLOAD_DIR"].replace("/data", str(self.uploads))
        redis = f"127.0.0.1:{self.redis_port}"
        env["TUSD_REDIS_URL"] = env["TUSD_REDIS_URL"].replace("redis:6379", redis)
        if self.objects is not None:
            # Each has a disk of its own.
            data = own(self.root, f"{name}-data")
            env["TUSD_UPLOAD_DIR"] = env["TUSD_S3_SPOOL_DIR"] = str(data)
            store = f"127.0.0.1:{self._weed.port}"
            env["TUSD_S3_ENDPOINT"] = env["TUSD_S3_ENDPOINT"].replace("objects:8333", store)
        else:
            data = self.uploads
        if port is not None:
            # All interfaces, as in a container, but each a port of its own.
            env["TUSD_PORT"] = str(port)
        command = self._here(name, ["tusd-py", *self._services[service]["command"]])
        return Container(command, env, data, own(self.root, f"{name}-tmp"))

    def _proxy(self) -> Container:
        scratch = own(self.root, "proxy-tmp")
        text = described.PROXY.read_text()
        # There are no names to look up here, and older versions of nginx know no `resolve`.
        text = text.replace("include /tmp/resolver.conf;", "")
        [line] = [line for line in text.splitlines() if "server server:8080 resolve" in line]
        lines = [line.replace("server:8080 resolve", f"127.0.0.1:{port}") for port in self.ports]
        text = text.replace(line, "\n".join(lines))
        text = text.replace("listen 8080;", f"listen 127.0.0.1:{self.proxy_port};")
        text = text.replace("/tmp/", f"{scratch}/")
        config = scratch / "nginx.conf"
        config.write_text(text)
        command = [program("nginx"), "-e", "stderr", "-c", str(config), "-g", "daemon off;"]
        return Container(command, {}, scratch, scratch)


def the_image(root: Path, port: int) -> Container:
    """The image with nothing beside it, as `docker run` starts it."""
    uploads = own(root, "uploads")
    env = described.image_environment()
    env["TUSD_UPLOAD_DIR"] = env["TUSD_UPLOAD_DIR"].replace("/data", str(uploads))
    env["TUSD_PORT"] = str(port)
    found = dict(described.last_stage())
    assert json.loads(found["ENTRYPOINT"]) == ["tusd-py"]
    command = [sys.executable, "-m", "tusd_py", *json.loads(found["CMD"])]
    return Container(command, env, uploads, own(root, "tmp"))


def own(root: Path, name: str) -> Path:
    """A directory that the processes may write to."""
    made = root / name
    made.mkdir()
    if os.getuid() == 0:
        os.chown(made, NOBODY, NOBODY)
    return made
