"""Podman with images, containers and networks of its own, in one directory, so that nothing else on the machine is touched."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PROGRAMS = {
    "podman": "podman",
    "runc": "runc",
    "catatonit": "catatonit",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
}
"""Debian's packages by the programs that they bring."""
_SETTINGS = """\
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
[engine]
# crun of Debian 12 does not start with the control groups of every machine.
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
image_default_transport = "containers-storage:"
[network]
network_backend = "netavark"
network_config_dir = "{place}/networks"
"""
_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{place}/storage"
runroot = "{place}/run"
"""
_MOST_FILES = 20_000
_MOST_PROCESSES = 4096


class EngineFailed(AssertionError):
    """A command of the engine ended with an error. Contains what it printed."""


def missing() -> list[str]:
    """The packages without which there are no containers here."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [name for program, name in _PROGRAMS.items() if not shutil.which(program, path=path)]


class Podman:
    """Podman on a directory. Needs root."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        (place / "networks").mkdir(exist_ok=True)
        settings, storage = place / "containers.conf", place / "storage.conf"
        # Not more than this process has: some machines let nobody raise a limit.
        limits = {
            "files": min(_MOST_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
            "processes": _MOST_PROCESSES,
        }
        settings.write_text(_SETTINGS.format(place=place, **limits))
        storage.write_text(_STORAGE.format(place=place))
        kept = {key: value for key, value in os.environ.items() if not key.startswith("TUSD_")}
        self.env = {
            **kept,
            "CONTAINERS_CONF": str(settings),
            "CONTAINERS_STORAGE_CONF": str(storage),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def run(self, *words: str | Path, timeout: float = 120, cwd: Path | None = None) -> str:
        """Run `podman` and return its standard output without the last line break."""
        return self.call(["podman", *map(str, words)], timeout=timeout, cwd=cwd)

    def call(
        self,
        command: Sequence[str],
        *,
        timeout: float = 120,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> str:
        """Run a program that uses this engine."""
        done = subprocess.run(
            command,
            env={**self.env, **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise EngineFailed(
                f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout.rstrip("\n")

    def has_image(self, name: str) -> bool:
        return name in self.run("images", "--format", "{{.Repository}}:{{.Tag}}").splitlines()

    def image_bytes(self, name: str) -> int:
        """The size of an image with all its layers."""
        size = json.loads(self.run("image", "inspect", name))[0]["Size"]
        assert isinstance(size, int)
        return size
