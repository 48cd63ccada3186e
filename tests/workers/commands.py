"""Runs `tusd-py` commands as an operator does beside a server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping

from tests.support.commands import run
from tests.support.server import ServerProcess


def command(*words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    return run(*words, env=env)


def documents(*words: str, env: Mapping[str, str] | None = None) -> list[dict[str, object]]:
    """The lines of JSON that it prints when all goes well."""
    done = command(*words, "--json", env=env)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of(server: ServerProcess) -> tuple[str, str]:
    """The flags by which a command finds the uploads of a server."""
    return "--upload-dir", str(server.upload_dir)
