"""Runs a worker and a scheduler beside `tusd-py serve`: starts them, restarts them when they exit, and stops them with it.

They are the same commands that an operator would run, with the server's settings. The standard input of each is a pipe from the
server; they exit when it closes, so that a killed server leaves none behind.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from tusd_py import logs
from tusd_py.background import cancel, keep_running
from tusd_py.settings.model import Settings
from tusd_py.settings.reference import ENVIRONMENT_PREFIX, catalogue

logger = logging.getLogger(__name__)

COMMANDS = ("worker", "scheduler")
SUPERVISED = "_TUSD_SUPERVISED"
"""Environment variable of a process that exits when its standard input closes."""
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.2, 30.0
"""Pauses before the restarts of a process that exits at once."""
_STABLE_SECONDS = 60.0
"""Uptime after which the next restart follows without a growing pause."""


class Children:
    """Runs each of `COMMANDS` as a process from `start` to `stop`."""

    def __init__(self, settings: Settings) -> None:
        self._environment = environment(settings)
        self._processes: dict[str, Process] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the processes, without waiting for them."""
        self._tasks = [keep_running(partial(self._keep, each), each) for each in COMMANDS]

    async def stop(self, timeout: float) -> None:
        """Stop the processes with SIGTERM, and with SIGKILL those that have not exited within `timeout` seconds."""
        await cancel(*self._tasks)
        processes = list(self._processes.values())
        for process in processes:
            with suppress(ProcessLookupError):
                process.terminate()
        waits = [asyncio.ensure_future(process.wait()) for process in processes]
        if waits:
            await asyncio.wait(waits, timeout=timeout)
        for process, wait in zip(processes, waits, strict=True):
            if not wait.done():
                logs.event(logger, logging.WARNING, "child killed", pid=process.pid)
                with suppress(ProcessLookupError):
                    process.kill()
        await asyncio.gather(*waits)

    async def _keep(self, command: str) -> None:
        """Run a command, and restart it whenever it exits."""
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE_SECONDS
        while True:
            began = loop.time()
            try:
                code = await self._run(command)
            except OSError as problem:
                code = None
                logger.error("the %s cannot be started: %s", command, problem)
            if loop.time() - began > _STABLE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            logs.event(logger, logging.ERROR, "child ended", command=command, code=code)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    async def _run(self, command: str) -> int:
        """Starts it and waits for its end; the exit code."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tusd_py", command),
            stdin=asyncio.subprocess.PIPE,
            env=self._environment,
            # What is typed at the terminal is for the server, which tells its children.
            start_new_session=True,
        )
        self._processes[command] = process
        code = await process.wait()
        del self._processes[command]
        return code


def environment(settings: Settings) -> Mapping[str, str]:
    """The environment in which a command has the same settings, wherever the server had them from."""
    ours = {
        name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)
    }
    for setting in catalogue(type(settings)):
        value: object = getattr(settings, setting.name)
        if setting.name not in settings.model_fields_set or value is None:
            continue
        ours[setting.environment] = setting.text(value)
    return {**ours, SUPERVISED: "1"}
