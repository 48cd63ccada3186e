"""Commands of `tusd-py` that are run to their end, as an operator does beside a server."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from tests.support import preloaded
from tests.support.preloaded import ROOT
from tests.support.server import environment


def run(
    *words: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. env: what differs from this process's environment. timeout: in seconds."""
    changed = {"COLUMNS": "100", **(env or {})}
    if not preloaded.can_start(changed):
        return subprocess.run(
            [sys.executable, "-m", "tusd_py", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment(changed),
            cwd=cwd,
            check=False,
        )
    process = preloaded.start(words, env=environment(changed), cwd=cwd)
    out, errors = process.stdout, process.stderr
    assert out is not None
    assert errors is not None
    with out, errors:
        said: list[bytes] = []
        reading = threading.Thread(target=lambda: said.append(errors.read()))
        late = threading.Timer(timeout, process.kill)
        reading.start()
        late.start()
        shown = out.read()
        reading.join()
        late.cancel()
    code = process.wait(timeout)
    return subprocess.CompletedProcess(words, code, shown.decode(), said[0].decode())
