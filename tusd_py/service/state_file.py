"""A JSON object in a file of the state directory, which is read and replaced as a whole; blocking."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO


def read(path: Path) -> Mapping[str, object]:
    """The object; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write(path: Path, content: Mapping[str, object]) -> None:
    """Replace the file: after a power cut it has the old or the new content. Raises OSError."""
    # One name for all, so that a process that is killed leaves one file, which the next one uses.
    tmp = path.with_name(f"{path.name}.new")
    is_written = False
    while not is_written:
        with tmp.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Otherwise another process gave it its name meanwhile, or removed it.
            if _is_at(file.fileno(), tmp):
                _write(file, tmp, content)
                tmp.replace(path)
                is_written = True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write(file: BinaryIO, path: Path, content: Mapping[str, object]) -> None:
    """Write the file durably; if that fails, remove it. Raises OSError."""
    try:
        file.truncate(0)
        file.write(json.dumps(content).encode())
        file.flush()
        os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
