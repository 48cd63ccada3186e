"""Hooks as executables in tusd's format: files in a directory, named after the events for which they are run.

The event is on standard input, the answer on standard output, and standard error goes to the log. Files may be added and
removed while the server runs. A hook that exceeds its timeout is killed with all processes that it started.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, nullcontext, suppress
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO

from tusd_hooks import wire
from tusd_hooks.wire import WireHooks
from tusd_py import logs
from tusd_py.background import cancel, spawn
from tusd_py.events.model import Changes, Event, EventType, HookContext, HookFailed
from tusd_py.settings.reference import ENVIRONMENT_PREFIX
from tusd_py.settings.types import WIRE_EVENTS

logger = logging.getLogger(__name__)

_ANSWER_LIMIT = 64 * 1024
"""Maximum size of an answer in bytes; the rest is read and discarded."""
_LINE_LIMIT = 1024
"""Maximum length of a logged line of standard error in bytes; longer ones are split."""
_MOST_IN_BACKGROUND = 32
"""Executables of `post-` events that run at the same time; others wait in line, as each takes a process and descriptors."""


_REASONS = {
    errno.ENOENT: "the interpreter that its first line names does not exist",
    errno.EACCES: "cannot be executed (chmod +x)",
    errno.ENOEXEC: "is not a program, and its first line names no interpreter (#!/bin/sh)",
}
"""Why an existing file could not be run."""


class FileHooks(WireHooks):
    """Runs an executable for each event."""

    _directory: Path

    def __init__(self) -> None:
        super().__init__()
        self._errors: set[asyncio.Task[None]] = set()
        self._background = asyncio.Semaphore(_MOST_IN_BACKGROUND)

    async def start(self, context: HookContext) -> None:
        """Read the settings, and warn about files that will not be run. Raises HookFailed if there is no directory."""
        await super().start(context)
        if context.settings.hooks_dir is None:
            raise HookFailed("--hooks-dir is not set")
        self._directory = context.settings.hooks_dir
        enabled = context.settings.hooks_enabled_events
        for warning in warnings(self._directory, enabled):
            logger.warning("%s", warning)
        found = [name for name in enabled if os.access(self._directory / name, os.X_OK)]
        logs.event(
            logger,
            logging.INFO,
            "hooks as executables",
            directory=self._directory,
            events=", ".join(found) or "none",
        )

    async def stop(self) -> None:
        """Stop reading from background processes that hooks left."""
        await cancel(*self._errors)

    def wants_event(self, event_type: EventType) -> bool:
        """Return whether an executable for this type of event exists now."""
        return (self._directory / event_type.value).exists()

    async def handle(self, event: Event) -> Changes | None:
        """Run the executable of an event, if it exists. Return or raise the meaning of its answer. Raises HookFailed."""
        path = self._directory / event.type.value
        if not path.exists():
            return None
        async with self._background if event.type.startswith("post-") else nullcontext():
            output = await self._run(path, event)
        if event.type not in wire.ANSWERED or not output.strip():
            return None
        if len(output) > _ANSWER_LIMIT:
            raise HookFailed(f"{path}: the answer is larger than {_ANSWER_LIMIT} bytes")
        try:
            return wire.parse_answer(output, self._settings.upload_dir).outcome(event.type)
        except HookFailed as problem:
            raise HookFailed(f"{path}: {problem}") from None

    async def _run(self, path: Path, event: Event) -> bytes:
        """Return the executable's standard output, at most one byte more than the limit."""
        process = self._begin(path, event)
        try:
            # In the background: processes that outlive the hook write to it, too.
            spawn(_log_lines(process, event), "hook output", self._errors)
            output = await _read(process)
            code = await _end_of(process)
        except BaseException:
            # Timed out or cancelled: kill it with all processes that it started.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await _end_of(process)
            raise
        if code != 0:
            ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise HookFailed(f"{path}: {ended}{wire.excerpt(output)}")
        return output

    def _begin(self, path: Path, event: Event) -> Popen[bytes]:
        """Start the executable in its own process group.

        Not with the event loop: uvloop leaks our ends of the pipes to the process, and a background process of the hook would
        hold them open.
        """
        with _file_with(wire.request_document(event, self._settings)) as document:
            try:
                return Popen(  # noqa: S603 -- the operator put it there to be run
                    [str(path)],
                    stdin=document,
                    stdout=PIPE,
                    stderr=PIPE,
                    bufsize=0,
                    cwd=self._directory,
                    env=environment(os.environ, event),
                    start_new_session=True,
                )
            except OSError as problem:
                why = _REASONS.get(problem.errno or 0) or problem.strerror or problem
                raise HookFailed(f"{path}: {why}") from None


def environment(ours: Mapping[str, str], event: Event) -> dict[str, str]:
    """Return the environment of executables: the server's, without its settings, some of which are secret."""
    upload = event.upload
    is_created = event.type is not EventType.PRE_CREATE
    return {
        **{name: text for name, text in ours.items() if not name.startswith(ENVIRONMENT_PREFIX)},
        "TUS_ID": upload.id if is_created else "",
        "TUS_SIZE": str(upload.length or 0),
        "TUS_OFFSET": str(upload.offset),
        "TUS_EVENT_ID": event.id,
        "TUS_EVENT_ATTEMPT": str(event.attempt),
    }


def warnings(directory: Path, enabled: Sequence[str]) -> Iterator[str]:
    """Return warnings about probable mistakes in the directory."""
    found = False
    for path in sorted(directory.iterdir()):
        name, stem = path.name, path.name.partition(".")[0]
        found = found or name in enabled
        if name in WIRE_EVENTS and not (path.is_file() and os.access(path, os.X_OK)):
            yield f"{path} cannot be executed (chmod +x): its events will fail"
        elif name in WIRE_EVENTS and name not in enabled:
            yield f"{path} will not be run: --hooks-enabled-events does not have {name}"
        elif stem in WIRE_EVENTS and name != stem:
            yield f"{path} will not be run: hooks have no ending in their names ({stem})"
    if not found:
        yield f"{directory} has no file that is named after an enabled event, such as {enabled[0]}"


def _file_with(document: bytes) -> IO[bytes]:
    """Open an anonymous file with this content. A pipe would block if the executable does not read it."""
    if sys.platform == "linux":
        # It may have credentials of a request, which must not go to a disk.
        file: IO[bytes] = os.fdopen(os.memfd_create("event"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 -- the caller closes it
    file.write(document)
    file.seek(0)
    return file


async def read_parts(pipe: IO[bytes] | None, size: int) -> AsyncGenerator[bytes, None]:
    """Read a pipe in parts of at most `size` bytes until its end, and close it.

    Not with `connect_read_pipe`: uvloop closes the descriptor of its transport twice, the second time when a thread may already
    have opened another file under its number.
    """
    if pipe is None:
        return
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    with pipe:
        descriptor = pipe.fileno()
        os.set_blocking(descriptor, False)
        loop.add_reader(descriptor, readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                try:
                    part = os.read(descriptor, size)
                except BlockingIOError:
                    continue
                if not part:
                    return
                yield part
        finally:
            loop.remove_reader(descriptor)


async def _read(process: Popen[bytes]) -> bytes:
    """Read the output, keeping no more than shows that it is too long."""
    output = bytearray()
    async with aclosing(read_parts(process.stdout, _ANSWER_LIMIT)) as parts:
        async for part in parts:
            output += part[: _ANSWER_LIMIT + 1 - len(output)]
    return bytes(output)


async def _end_of(process: Popen[bytes]) -> int:
    """Wait for a process; return its exit code, or the negative number of the signal that killed it."""
    if sys.platform != "linux":
        return await asyncio.to_thread(process.wait)
    if process.poll() is None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        try:
            descriptor = os.pidfd_open(process.pid)
        except OSError:  # an old kernel, or a sandbox
            return await asyncio.to_thread(process.wait)
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    return process.wait()


async def _log_lines(process: Popen[bytes], event: Event) -> None:
    rest = b""
    async with aclosing(read_parts(process.stderr, _LINE_LIMIT)) as parts:
        async for part in parts:
            *lines, rest = (rest + part).split(b"\n")
            if len(rest) >= _LINE_LIMIT:
                lines, rest = [*lines, rest], b""
            _log_each(lines, event)
    _log_each([rest], event)


def _log_each(lines: list[bytes], event: Event) -> None:
    for line in filter(None, (each.rstrip() for each in lines)):
        text = line.decode("utf-8", "backslashreplace")
        logger.info("%s hook of upload %s: %s", event.type, event.upload.id, text)
