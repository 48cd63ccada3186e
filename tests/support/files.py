"""Files of directories that servers change meanwhile."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(directory: Path) -> list[Path]:
    """All files below a directory, sorted; none if it is not there.

    Unlike `Path.rglob`, which fails if a directory goes between its listing and its reading.
    """
    return sorted(Path(place, name) for place, _, names in os.walk(directory) for name in names)
