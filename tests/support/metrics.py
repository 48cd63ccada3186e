"""What the processes of a server have written for the metrics of each other, once a second."""

from __future__ import annotations

import json
from pathlib import Path


def published(upload_dir: Path, name: str) -> float:
    """The sum of a counter over these files. If it is the right one, no process lacks what another one has counted."""
    files = (upload_dir / ".tusd-py" / "metrics").rglob("*.json")
    samples = [sample for file in files for sample in json.loads(file.read_text())]
    values: list[float] = [value for _, each, _, value in samples if each == name]
    return sum(values)
