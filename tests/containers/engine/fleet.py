"""docker-compose.yml, started by podman-compose."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tests.containers import described
from tests.containers.engine.podman import EngineFailed, Podman
from tests.support.ports import reserve
from tests.support.server import ROOT
from tests.support.waiting import wait_until

_START_SECONDS = 120.0


class Fleet:
    """The services of the Compose file, with the proxy's port on this machine."""

    base_path = "/files/"
    bucket = None

    def __init__(self, podman: Podman) -> None:
        self.podman = podman
        self.project = "tusd-py"
        with reserve("127.0.0.1", 0) as holder:
            self.address: tuple[str, int] = holder.getsockname()[:2]
        self._env = {"TUSD_PUBLISH": f"127.0.0.1:{self.address[1]}"}

    @property
    def upload_dir(self) -> Path:
        """The volume of uploads, as this machine sees it."""
        volume = self.podman.run("volume", "inspect", f"{self.project}_uploads")
        return Path(json.loads(volume)[0]["Mountpoint"])

    def data_file(self, upload_id: str) -> Path:
        return self.upload_dir / upload_id

    def compose(self, *words: str, timeout: float = 300) -> str:
        command = ["podman-compose", "--file", str(described.COMPOSE), "--in-pod", "false", *words]
        return self.podman.call(command, timeout=timeout, cwd=ROOT, env=self._env)

    def up(self, *words: str) -> None:
        """`up --detach`, and wait until all are well."""
        self.compose("up", "--detach", "--no-build", "--no-recreate", *words)
        wait_until(lambda: not self.unwell(), "all services to be well", _START_SECONDS)

    def containers(self, service: str | None = None, *options: str) -> list[str]:
        """The names of the containers that run, of one service or all. options: of `podman ps`."""
        wanted = [*options, f"--filter=label=io.podman.compose.project={self.project}"]
        if service is not None:
            wanted.append(f"--filter=label=com.docker.compose.service={service}")
        return sorted(self.podman.run("ps", *wanted, "--format={{.Names}}").split())

    def unwell(self) -> list[str]:
        """Containers whose health check fails. Nobody runs it by itself, as there is no systemd."""
        return [name for name in self.containers(None, "--all") if not self.is_well(name)]

    def is_well(self, name: str) -> bool:
        try:
            self.podman.run("healthcheck", "run", name)
        except EngineFailed:
            return False
        return True

    def receiving(self) -> str:
        """The server that receives a body now."""
        [found] = [name for name in self.containers("server") if self._is_receiving(name)]
        return found

    def image_of(self, name: str) -> str:
        return self._inspect(name, "{{.Image}}")

    def started_at(self, name: str) -> str:
        return self._inspect(name, "{{.State.StartedAt}}")

    def stop(self, name: str) -> int:
        """Stop a container with the patience of its service, and return its exit code."""
        service = described.services()[name.rsplit("_", 2)[-2]]
        grace = str(service.get("stop_grace_period", "10s")).removesuffix("s")
        self.podman.run("stop", "--time", grace, name)
        return int(self._inspect(name, "{{.State.ExitCode}}"))

    def logs(self, names: Sequence[str]) -> str:
        return "".join(
            f"--- {name}\n{self.podman.call(['sh', '-c', f'podman logs {name} 2>&1'])}\n"
            for name in names
        )

    def down(self) -> None:
        """Remove everything, also what was started with another `--scale`."""
        if names := self.containers(None, "--all"):
            self.podman.run("rm", "--force", "--depend", "--ignore", "--time", "0", *names)
        self.compose("down", "--volumes")

    def _inspect(self, name: str, field: str) -> str:
        return self.podman.run("container", "inspect", "--format", field, name)

    def _is_receiving(self, name: str) -> bool:
        code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/metrics').read().decode())"
        printed = self.podman.run("exec", name, "python", "-c", code)
        return "\ntusd_uploads_active 1.0" in printed


def is_possible() -> bool:
    """True if this process may start containers."""
    return os.getuid() == 0
