"""The project's own image, built from the Dockerfile as it is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.containers.engine import stand_ins
from tests.containers.engine.podman import Podman
from tests.support.server import ROOT

NAME = "localhost/tusd-py:latest"
_OPTION = re.compile(r"^(?:global|user|site|install|:env:)\.([a-z-]+)='(.*)'$", re.MULTILINE)


def build(podman: Podman, *, label: str = "") -> str:
    """Build the image, and return its id.

    pip and npm ask in there whom they ask on this machine, with the same certificates. All is mounted and leaves nothing in the
    image.
    label: makes the image another one.
    """
    mounts = _pip_config(podman.place) | _npm_config(podman.place)
    volumes = [f"--volume={path}:{target}:ro" for path, target in mounts.items()]
    version = f"--build-arg=PYTHON={stand_ins.python_version(podman)}"
    # The other format has no health checks.
    options = ["--quiet", "--format=docker", "--network=host", f"--label=tests={label}"]
    return podman.run("build", *options, *volumes, version, "--tag", NAME, ROOT, timeout=900)


def _pip_config(place: Path) -> dict[Path, str]:
    """pip's configuration of this machine and the files that it names, with their places in a container."""
    printed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = dict(_OPTION.findall(printed))
    config = place / "pip.conf"
    config.write_text("\n".join(["[global]", *(f"{key} = {found[key]}" for key in found)]))
    named = (found[key] for key in ("cert", "find-links") if key in found)
    return {config: "/etc/pip.conf"} | {Path(at).resolve(): at for at in named if Path(at).exists()}


def _npm_config(place: Path) -> dict[Path, str]:
    """Likewise of npm, which is in the image itself if it is not here."""
    npm = shutil.which("npm")
    if npm is None:
        return {}
    lines, named = [], {}
    for key in ("registry", "cafile"):
        value = subprocess.run(
            [npm, "config", "get", key], capture_output=True, text=True, check=True
        ).stdout.strip()
        if value not in ("null", "undefined", ""):
            lines.append(f"{key}={value}")
            if Path(value).exists():
                named[Path(value).resolve()] = value
    config = place / "npmrc"
    config.write_text("\n".join(lines))
    return {config: "/root/.npmrc"} | named
