"""Runs an UploadManager under Node and passes its events to a test; `drive.mjs` defines the format of jobs and events."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Literal, NotRequired, Self, TypedDict, cast

DRIVER = Path(__file__).parent / "drive.mjs"

EventName = Literal[
    "state", "progress", "renewed", "asked", "access", "listed", "cancelled", "warning"
]
Command = Literal[
    "pause", "resume", "restart", "cancel", "list", "discard", "offline", "online", "close"
]


class Options(TypedDict, total=False):
    """Options of an UploadManager, under its own names (bytes, milliseconds)."""

    endpoint: str
    concurrency: int
    retry: dict[Literal["min", "max"], int]
    chunkSize: int
    refreshEvery: int
    restartWhenGone: bool
    stallTimeout: int
    namespace: str


class Job(TypedDict):
    """One run of the driver."""

    files: Sequence[str]
    accessTokens: Sequence[str]
    options: Options
    metadata: NotRequired[dict[str, str]]
    store: NotRequired[str]
    answer: NotRequired[Literal["resume", "force", "give-up"]]
    attempts: NotRequired[int]
    stay: NotRequired[bool]


Event = dict[str, Any]
"""One line of the driver; which keys there are depends on `event`."""


class ManagedUploads:
    """A running driver. As a context manager it leaves no process behind."""

    def __init__(self, job: Job) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            ["node", str(DRIVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._stderr = ""
        self._readers = [
            threading.Thread(target=read, daemon=True)
            for read in (self._read_events, self._read_stderr)
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
        """Ends the process by SIGKILL, if it has not ended yet."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join()

    def tell(self, command: Command) -> None:
        """Gives the driver a command."""
        self._say(command)

    def wait_for(
        self,
        name: EventName,
        matching: Callable[[Event], bool] = lambda event: True,
        *,
        count: int = 1,
        timeout: float = 30,
    ) -> Event:
        """The `count`-th event called `name` that is `matching`, past or to come."""
        deadline = monotonic() + timeout
        with self._changed:
            while True:
                found = [each for each in self.events if each["event"] == name and matching(each)]
                if len(found) >= count:
                    return found[count - 1]
                if self._ended:
                    raise AssertionError(f"it ended without {name!r}: {self._story()}")
                if not self._changed.wait(deadline - monotonic()):
                    raise AssertionError(f"no {name!r} within {timeout} s: {self._story()}")

    def wait_state(self, state: str, *, count: int = 1, timeout: float = 30) -> Event:
        """The `count`-th time that an upload came to be `state`."""
        return self.wait_for(
            "state", lambda event: event["state"] == state, count=count, timeout=timeout
        )

    def finish(self, *, timeout: float = 60) -> dict[str, Event]:
        """Waits for the driver's end; the last state of each upload, by name."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done within {timeout} s: {self._story()}") from None
        for reader in self._readers:
            reader.join()
        assert status == 0, f"exit code {status}: {self._story()}"
        return {event["name"]: event for event in self.all("state")}

    def succeed(self, *, timeout: float = 60) -> dict[str, str]:
        """Waits for the end, at which every upload must be complete; their URLs, by name."""
        ends = self.finish(timeout=timeout)
        assert {end["state"] for end in ends.values()} == {"completed"}, self._story()
        return {name: end["url"] for name, end in ends.items()}

    def all(self, name: EventName) -> list[Event]:
        """Every event called `name` so far, oldest first."""
        with self._changed:
            return [event for event in self.events if event["event"] == name]

    def states(self) -> list[str]:
        """The upload's states in order."""
        return [event["state"] for event in self.all("state")]

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
        return "\n".join(["", *told[-60:], self._stderr[-2000:]])
