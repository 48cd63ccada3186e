"""Files of the state directory that are replaced as a whole."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.server import environment
from tusd_py.service import state_file

KILLED = """
import os, signal, sys
from pathlib import Path
from tusd_py.service import state_file

os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
state_file.write(Path(sys.argv[1]), {"of": "a process that is killed " * 100})
"""


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    state_file.write(path, {"a": 1})

    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        state_file.write(path, {"a": 2})
    assert state_file.read(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_gone_after_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    assert state_file.read(path) == {}
    state_file.write(path, {"a": 1})
    assert state_file.read(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_that_write_at_the_same_time_one_comes_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sync = tmp_path / "file", os.fsync
    first_syncs, go_on = threading.Event(), threading.Event()

    def wait(descriptor: int) -> None:
        if not first_syncs.is_set():
            first_syncs.set()
            go_on.wait(60)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", wait)
    first = threading.Thread(target=state_file.write, args=(path, {"a": "first"}))
    second = threading.Thread(target=state_file.write, args=(path, {"a": "second"}))
    first.start()
    assert first_syncs.wait(60)
    second.start()
    second.join(0.1)
    assert second.is_alive()
    go_on.set()
    first.join()
    second.join()
    assert state_file.read(path) == {"a": "second"}
    assert list(tmp_path.iterdir()) == [path]
