"""Runs tus-js-client under Node and hands its events to a test, one upload a process.

The client is a black box: `node/upload.mjs` says what a job and an event look like. Nothing here
knows the tus protocol, and nothing judges what the client did.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Literal, NotRequired, Self, TypedDict, cast

import pytest

from tests.support.requirements import require_program

NODE_DIR = Path(__file__).parent / "node"
DRIVER = NODE_DIR / "upload.mjs"

EventName = Literal[
    "previous",
    "url",
    "request",
    "response",
    "progress",
    "chunk",
    "held",
    "aborted",
    "success",
    "error",
]
ENDINGS: frozenset[EventName] = frozenset({"success", "error", "aborted"})


class Source(TypedDict):
    """The data of an upload: a file that may be reopened, a buffer, or a stream that is read once."""

    kind: Literal["file", "buffer", "stream"]
    path: str


class Options(TypedDict, total=False):
    """Options of tus-js-client, under its own names (sizes in bytes, delays in milliseconds)."""

    endpoint: str
    protocol: Literal["tus-v1", "ietf-draft-03", "ietf-draft-05"]
    uploadUrl: str
    headers: dict[str, str]
    metadata: dict[str, str]
    metadataForPartialUploads: dict[str, str]
    chunkSize: int
    retryDelays: list[int]
    parallelUploads: int
    overridePatchMethod: bool
    removeFingerprintOnSuccess: bool
    uploadLengthDeferred: bool
    uploadDataDuringCreation: bool


class Job(TypedDict):
    """One run of the driver; see the head of `node/upload.mjs`."""

    source: Source
    options: Options
    urlStorage: NotRequired[str]
    resume: NotRequired[bool]
    holdAt: NotRequired[int]


class PreviousUpload(TypedDict):
    """An entry of the client's URL storage."""

    size: int
    uploadUrl: NotRequired[str]
    parallelUploadUrls: NotRequired[list[str]]


class Event(TypedDict):
    """One line of the driver; which keys there are depends on `event`."""

    event: EventName
    uploads: NotRequired[list[PreviousUpload]]
    url: NotRequired[str]
    method: NotRequired[str]
    status: NotRequired[int | None]
    headers: NotRequired[dict[str, str]]
    sent: NotRequired[int]
    total: NotRequired[int | None]
    size: NotRequired[int]
    accepted: NotRequired[int]
    offset: NotRequired[int]
    terminated: NotRequired[bool]
    message: NotRequired[str]


def require_tus_js(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sees to it that Node is there, and the packages of the lock file with it."""
    require_program("node", "nodejs")
    require_program("npm")
    # Several workers come here at the same time; the base's parent is what they have in common.
    with (tmp_path_factory.getbasetemp().parent / "npm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (NODE_DIR / "node_modules" / "tus-js-client").is_dir():
            subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=NODE_DIR, check=True)


class TusJsClient:
    """A running upload of tus-js-client. As a context manager it leaves no process behind."""

    def __init__(self, job: Job) -> None:
        """Starts the upload that `job` describes."""
        self.events: list[Event] = []
        self._ended = False
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            ["node", str(DRIVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._stderr = ""
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self._say(json.dumps(job))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def kill(self) -> None:
        """Ends the client by SIGKILL, if it has not ended yet."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join()

    def wait_for(
        self,
        name: EventName,
        matching: Callable[[Event], bool] = lambda event: True,
        *,
        timeout: float = 30,
    ) -> Event:
        """Returns the first event called `name` that is `matching`, past or to come.

        Raises AssertionError with all that was seen if the client ends without it, and after
        `timeout` seconds.
        """
        deadline = monotonic() + timeout
        seen = 0
        with self._changed:
            while True:
                for event in self.events[seen:]:
                    if event["event"] == name and matching(event):
                        return event
                seen = len(self.events)
                if self._ended:
                    raise AssertionError(f"the client ended without {name!r}: {self._story()}")
                if not self._changed.wait(deadline - monotonic()):
                    raise AssertionError(f"no {name!r} within {timeout} s: {self._story()}")

    def tell(self, command: Literal["continue", "abort", "terminate", "restart"]) -> None:
        """Gives the driver a command; its head says what they do."""
        self._say(command)

    def finish(self, *, timeout: float = 60) -> Event:
        """Waits until the client's process has ended, at most `timeout` s; returns its last word.

        Raises AssertionError if it hangs, crashes or says neither success, error nor aborted.
        """
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done within {timeout} s: {self._story()}") from None
        for reader in self._readers:
            reader.join()
        endings = [event for event in self.events if event["event"] in ENDINGS]
        assert status == 0, f"exit code {status}: {self._story()}"
        assert endings, self._story()
        return endings[-1]

    def succeed(self, *, timeout: float = 60) -> str:
        """Waits for the end as `finish` does, which must be a success; returns the upload's URL."""
        ending = self.finish(timeout=timeout)
        assert ending["event"] == "success", self._story()
        return ending["url"]

    def all(self, name: EventName) -> list[Event]:
        """Every event called `name` so far, oldest first."""
        with self._changed:
            return [event for event in self.events if event["event"] == name]

    def requests(self) -> list[tuple[str, int | None]]:
        """Method and status of every request that was answered, in the order of the answers."""
        return [(event["method"], event["status"]) for event in self.all("response")]

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.events.append(cast(Event, json.loads(line)))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        self._stderr = self._process.stderr.read()

    def _story(self) -> str:
        """The events except for progress."""
        told = [json.dumps(event) for event in self.events if event["event"] != "progress"]
        return "\n".join(["", *told[-40:], self._stderr[-2000:]])
