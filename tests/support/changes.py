"""Whether a server is in the middle of a change of an upload's files: no other server gets the upload until it is complete."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support.server import ServerProcess
from tests.support.tus import id_of
from tests.support.waiting import wait_until
from tusd_py.locks import ofd
from tusd_py.locks.epochs import Epochs, range_name


class Changes:
    """The changes that the servers of an upload directory make. Closed by `close`."""

    def __init__(self, upload_dir: Path) -> None:
        state = upload_dir / ".tusd-py"
        self._ranges = ofd.OfdLocks(str(state / "locks"))
        self._epochs = Epochs(str(state / "epochs"), is_local=True)

    def close(self) -> None:
        self._ranges.close()

    def is_changing(self, path: str) -> bool:
        """True if a server is within a change of the upload, so that its change byte is locked."""
        upload_id = id_of(path)
        name = range_name(upload_id, self._epochs.read(upload_id))
        return self._ranges._other(ofd._CHANGE + ofd._offset(name))


def is_stopped(server: ServerProcess) -> bool:
    """True if all threads of the process stand still."""
    try:
        tasks = [task.read_text() for task in Path(f"/proc/{server.pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):
        # A thread has ended since, so they do not all stand still.
        return False
    return bool(tasks) and all(task.rpartition(")")[2].split()[0] == "T" for task in tasks)


def stop_between_changes(server: ServerProcess, path: str) -> None:
    """Stop the server, but not within a change of that upload."""
    changes = Changes(server.upload_dir)
    try:
        while True:
            server.signal(signal.SIGSTOP)
            wait_until(lambda: is_stopped(server), "the server to stop")
            if not changes.is_changing(path):
                return
            server.signal(signal.SIGCONT)
            # Stopped again at once, it might not run at all.
            wait_until(lambda: not changes.is_changing(path), "the change to end")
    finally:
        changes.close()
