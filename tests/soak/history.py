"""The history of a run: one line of JSON for each fact, in files by client, so that a failure can be read.

    python -m tests.soak.history DIRECTORY UPLOAD

prints all that is about an upload, and the faults meanwhile, in the order of time.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from tests.soak import facts
from tests.soak.facts import Fact
from tests.soak.model import Model

FAULTS = "faults"
EVENTS = "events"


class History:
    """Writes facts down before the model learns them."""

    def __init__(self, directory: Path, model: Model) -> None:
        self.directory = directory
        self._model = model
        self._files: dict[str, TextIO] = {}
        self._lock = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True)

    def note(self, source: str, fact: Fact) -> None:
        """A fact of a client, of FAULTS or of EVENTS. Raises Violation."""
        at = time.monotonic()
        line = json.dumps({"at": round(at, 4), **facts.to_document(fact)})
        with self._lock:
            if source not in self._files:
                self._files[source] = (self.directory / f"{source}.jsonl").open("a", buffering=1)
            self._files[source].write(line + "\n")
        self._model.learn(fact, at)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def lines_about(directory: Path, upload: str) -> list[str]:
    """The lines about an upload and its fingerprint, with the faults in between."""
    lines = [
        (file.stem, line)
        for file in sorted(directory.glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    prints = {str(json.loads(line).get("fingerprint")) for _, line in lines if upload in line}
    names = [f'"{name}"' for name in prints - {"None", ""}] + [upload]
    about = [
        (json.loads(line)["at"], f"{source:>10} {line}")
        for source, line in lines
        if source != FAULTS and any(name in line for name in names)
    ]
    first, last = min(about, default=(0.0, ""))[0], max(about, default=(0.0, ""))[0]
    meanwhile = [
        (at, f"{source:>10} {line}")
        for source, line in lines
        if source == FAULTS and first - 5 <= (at := json.loads(line)["at"]) <= last
    ]
    return [line for _, line in sorted(about + meanwhile)]


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines_about(Path(sys.argv[1]), sys.argv[2])) + "\n")
