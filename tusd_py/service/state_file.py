"""A JSON object in a file of the state directory, which is read and replaced as a whole; blocking."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


def read(path: Path) -> Mapping[str, object]:
    """The object; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write(path: Path, content: Mapping[str, object]) -> None:
    """Replace the file: after a power cut it has the old or the new content. Raises OSError."""
    tmp = path.with_name(f"{path.name}.{os.getpid()}")
    with tmp.open("wb") as file:
        file.write(json.dumps(content).encode())
        file.flush()
        os.fsync(file.fileno())
    tmp.replace(path)
