"""The Redis client: pooled connections, a deadline for every command, and immediate failure while Redis is unavailable.

Every failure is a `RedisUnavailable`; callers decide what that means for an upload. The start and the end of an outage are
logged here, once each. A command that may have been executed is never repeated.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import hiredis
from redis.asyncio import (
    Connection,
    ConnectionPool,
    Redis,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    DataError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from tusd_py import logs
from tusd_py.background import is_set_within, keep_running, spawn
from tusd_py.redis import permissions
from tusd_py.redis.keys import DEFAULT_PREFIX, Keys
from tusd_py.redis.scripts import Script
from tusd_py.settings import redis_url

logger = logging.getLogger(__name__)

Part: TypeAlias = bytes | str | int | float
"""A part of a command. Text is sent as UTF-8."""

OLDEST = (6, 2)
"""Oldest supported version: Redis 6.2, whose commands Valkey has too."""

_MAX_CONNECTIONS = 32
"""With more, commands would only wait inside Redis, which runs one at a time."""
_MAX_BATCH = 64
"""Most commands that are sent together."""
_IDLE_SECONDS = 10.0
"""Idle time after which a connection is checked before use, because firewalls drop connections silently."""
_HEARTBEAT_SECONDS = 30.0
"""Interval of probes of an available Redis."""
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.05, 1.0
"""Pauses between probes of an unavailable Redis."""
_REPEAT_ERROR_SECONDS = 60.0
"""Time before the same error of a script is logged again."""
_PROBE_TTL_MILLISECONDS = 60_000

_PROBE = Script(
    "probe",
    """\
redis.call('SET', KEYS[1], '1', 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[1], 'NX')
return redis.call('GET', KEYS[2])
""",
)

# Replies that mean that Redis accepts no writes now. Redis 6.2 has them in the middle of a
# sentence if a script met them.
_REFUSED = re.compile(r"(?:^|-)(READONLY|OOM|MISCONF|NOREPLICAS|BUSY) ")
_DOWN = re.compile(r"(?:^|-)(MASTERDOWN|CLUSTERDOWN|NOAUTH|WRONGPASS) ")


class RedisUnavailable(Exception):
    """A command failed, or could not be sent. The text is for the log and never has the password."""


@dataclass(frozen=True)
class _Failure:
    """What is wrong with Redis, and since when."""

    reason: str
    away: bool
    """Whether nothing works; otherwise Redis replies, but accepts no writes."""
    began: float
    """By the monotonic clock."""


@dataclass(slots=True, eq=False)
class _Command:
    """A command to send. packed: its encoded form; script: that of an EVALSHA; deadline: by the loop's clock."""

    parts: Sequence[Part]
    script: Script | None
    packed: bytes
    deadline: float
    answer: asyncio.Future[object]

    def settle(self, answer: object) -> None:
        """Set the reply, or the exception if it is an error."""
        if self.answer.done():
            # The caller was cancelled.
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class RedisClient:
    """A client of one Redis that knows whether it is available. One per process."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = DEFAULT_PREFIX,
        timeout: float = 1.0,
        on_failure: Callable[[], None] | None = None,
        memory: Path | None = None,
    ) -> None:
        """Create a client; `start` connects. Raises ValueError for a wrong URL.

        Args:
            url: see `tusd_py.settings.redis_url`.
            prefix: of the names of all keys.
            timeout: deadline of a command in seconds, including waiting for a connection and connecting.
            on_failure: called for every command that fails.
            memory: file that identifies the Redis of the last run, so that an emptied one is noticed; its directory must exist.
        """
        self.prefix = prefix
        self.keys = Keys(prefix)
        self.address = redis_url.parse(url)
        self.timeout = timeout
        self._pool = _pool(self.address, timeout)
        self.client: Redis = Redis(connection_pool=self._pool)
        """redis-py's client, for subscriptions and pipelines. Raises redis-py's own errors."""
        self._on_failure = on_failure
        self._memory = memory
        self._secrets = [self.address.password, self.address.sentinel_password]
        self._slots = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._waiting: list[_Command] = []
        self._sent: set[asyncio.Task[None]] = set()
        self._failure: _Failure | None = None
        self._logged: bool | None = None
        """Whether an outage (True) or a refusal of writes (False) was logged; None if Redis works."""
        self._verified = False
        """Whether the version and permissions were checked."""
        self._known: str | None = None
        self.emptied_at: float | None = None
        """When it was noticed last that Redis had lost its data, by the monotonic clock; None if it never was."""
        self._stopped = False
        self._asked = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._reported: dict[tuple[str, str], float] = {}

    @property
    def available(self) -> bool:
        """Whether the last command or probe succeeded. Sends no command."""
        return self._failure is None and not self._stopped

    @property
    def trouble(self) -> str | None:
        """What is wrong, for the log, or None."""
        return None if self._failure is None else self._failure.reason

    async def start(self) -> None:
        """Connect. An unavailable Redis is logged, and used as soon as it is available."""
        if self._memory is not None:
            self._known = await asyncio.to_thread(read_line, self._memory)
        trouble = await self._probe()
        if trouble is not None:
            self._begin(trouble)
            self._log_outage(trouble)
        self._watcher = keep_running(self._watch, "redis")

    async def stop(self) -> None:
        """Close all connections. Later commands fail."""
        self._stopped = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        await self._pool.drop_idle()
        with suppress(RedisError, OSError):
            await self._pool.disconnect()

    async def command(self, *parts: Part) -> object:
        """Send a command and return its reply (bytes, int, None or list).

        Raises RedisUnavailable, no later than the deadline, and at once while Redis is unavailable. A command that failed may
        have been executed.
        """
        return await self._answered(str(parts[0]), self._queue(parts))

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Part] = ()) -> object:
        """Run a script and return its result. Raises RedisUnavailable as `command` does."""
        return await self._answered(script.name, self._queue_script(script, keys, args))

    async def run_each(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Part]]]
    ) -> list[object]:
        """Run a script with each of these keys and arguments, sent together, and return the results.

        Raises RedisUnavailable as `command` does if any of them fails; others may have been executed.
        """
        if not calls:
            return []
        answers = [self._queue_script(script, keys, args) for keys, args in calls]
        try:
            await asyncio.wait(answers)
        finally:
            failed = [answer for answer in answers if answer.cancel() or answer.exception()]
        if failed:
            await self._answered(script.name, failed[0])
        return [answer.result() for answer in answers]

    async def check(self) -> str | None:
        """Probe Redis now, for health checks. Return None, or what is wrong."""
        if self._failure is None:
            trouble = await self._probe()
            if trouble is not None:
                self._begin(trouble)
        return self.trouble

    async def was_emptied(self) -> bool:
        """Ask whether Redis has lost its data since it was asked last. Raises RedisUnavailable."""
        found = await self.command("GET", self.keys.since)
        if self._known is None or found == self._known.encode():
            return False
        # Writes the mark anew, so that it is noticed once.
        trouble = await self._probe()
        if trouble is not None:
            raise RedisUnavailable(trouble.reason)
        return True

    # Commands

    def _queue_script(
        self, script: Script, keys: Sequence[str], args: Sequence[Part]
    ) -> asyncio.Future[object]:
        return self._queue(("EVALSHA", script.sha, len(keys), *keys, *args), script)

    def _queue(self, parts: Sequence[Part], script: Script | None = None) -> asyncio.Future[object]:
        """Queue a command, to be sent with all others of this iteration of the event loop. Return the future of its reply."""
        loop = asyncio.get_running_loop()
        command = _Command(
            parts, script, b"", loop.time() + self.timeout, answer=loop.create_future()
        )
        try:
            if self._stopped:
                raise RedisUnavailable("the connection to Redis is closed")
            self._fail_if_away()
            command.packed = _packed(parts)
        except (RedisUnavailable, RedisError) as error:
            command.settle(error)
            return command.answer
        self._waiting.append(command)
        if len(self._waiting) == 1:
            loop.call_soon(self._send_waiting)
        return command.answer

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for begin in range(0, len(waiting), _MAX_BATCH):
            batch = waiting[begin : begin + _MAX_BATCH]
            spawn(self._execute(batch), "redis commands", self._sent)

    async def _answered(self, name: str, answer: asyncio.Future[object]) -> object:
        """Wait for a reply. Raises RedisUnavailable."""
        try:
            return await answer
        except (RedisUnavailable, RedisError, OSError) as error:
            # OSError includes TimeoutError, the deadline.
            if self._on_failure is not None:
                self._on_failure()
            if isinstance(error, RedisUnavailable):
                raise
            raise self._translated(name, error) from None

    def _fail_if_away(self) -> None:
        trouble = self._failure
        if trouble is not None and trouble.away:
            raise RedisUnavailable(f"Redis is away: {trouble.reason}")

    async def _execute(self, commands: Sequence[_Command]) -> None:
        """Send commands and settle each before the deadline of the first of them."""
        try:
            async with (
                asyncio.timeout_at(commands[0].deadline),
                self._connection() as connection,
            ):
                await self._exchange(connection, commands)
        except (RedisUnavailable, RedisError, OSError) as error:
            # Commands that have a reply keep it.
            for command in commands:
                command.settle(error)
        finally:
            # Whatever happened, no caller waits forever.
            for command in commands:
                command.answer.cancel()

    @staticmethod
    async def _exchange(connection: AbstractConnection, commands: Sequence[_Command]) -> None:
        """Send commands and settle each. Raises a reply after which the connection must not be used again."""
        await connection.send_packed_command([command.packed for command in commands])
        unknown: list[_Command] = []
        errors: list[ResponseError] = []
        for command in commands:
            answer = await _response_or_error(connection)
            if isinstance(answer, NoScriptError) and command.script is not None:
                unknown.append(command)
                continue
            if isinstance(answer, ResponseError):
                errors.append(answer)
            command.settle(answer)
        for command in unknown:
            # Not executed, so it may be sent again; EVAL makes Redis cache the script.
            source = cast(Script, command.script).source
            await connection.send_command("EVAL", source, *command.parts[2:])
            answer = await _response_or_error(connection)
            if isinstance(answer, ResponseError):
                errors.append(answer)
            command.settle(answer)
        for error in errors:
            if _is_away(error) is not None:
                raise error

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AbstractConnection]:
        """Take a connection for exclusive use."""
        async with self._slots:
            # Redis may have become unavailable while this waited.
            self._fail_if_away()
            connection = await self._pool.take()
            try:
                yield connection
            except ResponseError as error:
                if _is_away(error) is not None:
                    # This may be a former primary, and the name resolve to another server now.
                    await connection.disconnect(nowait=True)
                raise
            finally:
                if self._stopped:
                    # It may have been opened after the others were closed.
                    await connection.disconnect(nowait=True)
                await self._pool.release(connection)

    def _translated(self, name: str, error: Exception) -> RedisUnavailable:
        """Record an error and translate it into RedisUnavailable."""
        reason = self._reason(error)
        away = _is_away(error)
        if away is None:
            self._report_error(name, reason)
        else:
            self._begin(_Failure(reason, away, time.monotonic()))
        return RedisUnavailable(f"{name}: {reason}")

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError | RedisTimeoutError):
            return f"no answer from {self.address} within {self.timeout:g} s"
        text = str(error) or type(error).__name__
        if isinstance(error, ReadOnlyError) and "READONLY" not in text:
            text = f"READONLY {text}"
        if isinstance(error, NoPermissionError) and "NOPERM" not in text:
            text = f"NOPERM {text}"
        for secret in filter(None, self._secrets):
            text = text.replace(secret, "********")
        return text

    def _report_error(self, name: str, reason: str) -> None:
        """Log an error of one command, such as a mistake in a script."""
        key, now = (name, reason[:80]), time.monotonic()
        if reason.startswith("NOPERM"):
            # A script is refused for a command in it, which was logged before.
            if not permissions.is_reported(str(self.address)):
                permissions.report(str(self.address), name, reason.removeprefix("NOPERM "))
            return
        if now - self._reported.get(key, -_REPEAT_ERROR_SECONDS) >= _REPEAT_ERROR_SECONDS:
            if len(self._reported) > 100:
                self._reported.clear()
            self._reported[key] = now
            logs.event(logger, logging.ERROR, "redis error", command=name, reason=reason)

    # Availability

    def _begin(self, trouble: _Failure) -> None:
        """Record a failure and start probing."""
        self._verified = False
        current = self._failure
        if current is not None and (current.away or not trouble.away):
            return
        self._failure = trouble
        self._asked.set()

    async def _watch(self) -> None:
        """Probe Redis periodically, and often while it is unavailable."""
        pause = _FIRST_PAUSE_SECONDS
        # Python 3.11 loses a cancellation now and then (asyncio.wait_for, which redis-py uses).
        while not self._stopped:
            trouble = self._failure
            if trouble is None:
                pause = _FIRST_PAUSE_SECONDS
                await is_set_within(self._asked, _HEARTBEAT_SECONDS)
                self._asked.clear()
            elif self._logged is not None:
                self._asked.clear()
                # Jitter keeps several servers from probing in step.
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311
                pause = min(pause * 2, _MAX_PAUSE_SECONDS)
            if self._failure is not None:
                # They may lead to a server that is gone.
                await self._pool.drop_idle()
            try:
                found = await self._probe()
            except Exception as error:  # noqa: BLE001
                # The watcher must go on, or Redis would stay unavailable forever.
                logs.event(logger, logging.ERROR, "redis probe failed", exc_info=error)
                found = _Failure(repr(error), True, time.monotonic())
            self._record_probe(found)

    def _record_probe(self, found: _Failure | None) -> None:
        """Record the result of a probe."""
        before = self._failure
        if found is None:
            self._failure = None
            if before is not None:
                self._log_recovery(before)
            return
        # The start of the outage stays; its reason may have changed.
        began = found.began if before is None else before.began
        self._failure = _Failure(found.reason, found.away, began)
        self._log_outage(self._failure)

    def _log_outage(self, trouble: _Failure) -> None:
        if self._logged is trouble.away:
            return
        self._logged = trouble.away
        what = "redis away" if trouble.away else "redis takes no writes"
        logs.event(logger, logging.WARNING, what, server=str(self.address), reason=trouble.reason)

    def _log_recovery(self, trouble: _Failure) -> None:
        seconds = round(time.monotonic() - trouble.began, 3)
        if self._logged is not None:
            logs.event(
                logger, logging.WARNING, "redis back", server=str(self.address), after=seconds
            )
        else:
            # A broken connection or a late reply: Redis works when it is probed.
            logs.event(logger, logging.WARNING, "redis failed once", reason=trouble.reason)
        self._logged = None

    async def _probe(self) -> _Failure | None:
        """Try a write, even while other commands fail at once. Return what is wrong, or None."""
        try:
            async with asyncio.timeout(self.timeout):
                return await self._probe_unbounded()
        except (RedisError, OSError) as error:
            return _Failure(self._reason(error), _is_away(error) is not False, time.monotonic())

    async def _probe_unbounded(self) -> _Failure | None:
        connection = await self._pool.take()
        try:
            if not self._verified:
                await connection.send_command("INFO", "server")
                # A user without the permission for INFO has a Redis that is new enough for ACLs.
                with suppress(NoPermissionError):
                    problem = _too_old(await connection.read_response())
                    if problem is not None:
                        return _Failure(problem, True, time.monotonic())
                await self._check_permissions(connection)
            mark = secrets.token_hex(8)
            keys = (self.keys.probe, self.keys.since)
            await connection.send_command(
                "EVAL", _PROBE.source, 2, *keys, mark, _PROBE_TTL_MILLISECONDS
            )
            try:
                found = await connection.read_response()
            except NoPermissionError as error:
                raise NoPermissionError(f"EVAL of SET and GET of {keys[0]}: {error}") from None
        except ResponseError:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)
        self._verified = True
        if isinstance(found, bytes):
            await self._recognise(found.decode("ascii", "replace"))
        return None

    async def _check_permissions(self, connection: AbstractConnection) -> None:
        """Log each required command that this user may not run, once."""
        asked = permissions.questions(self.keys)
        sent = [("MULTI",), *asked, ("DISCARD",)]
        await connection.send_packed_command([_packed(question) for question in sent])
        answers = [await _response_or_error(connection) for _ in sent]
        for command, reason in permissions.refused(sent[:-1], answers[:-1]):
            permissions.report(str(self.address), command, reason)

    async def _recognise(self, found: str) -> None:
        """Log if this is not the Redis of before, or if it has lost its data."""
        if found == self._known:
            return
        if self._known is not None:
            self.emptied_at = time.monotonic()
            logs.event(
                logger,
                logging.WARNING,
                "redis emptied",
                message=f"{self.address} does not know what was kept before: duplicates of earlier "
                "uploads are not recognised; uploads themselves are not affected",
                server=str(self.address),
            )
        self._known = found
        if self._memory is not None:
            await asyncio.to_thread(_write, self._memory, found)


def _packed(parts: Sequence[Part]) -> bytes:
    """Encode a command, ten times as fast as redis-py does."""
    # Its types allow one part only, but it takes any number.
    packed: bytes = hiredis.pack_command(tuple(parts))  # type: ignore[arg-type]
    return packed


async def _response_or_error(connection: AbstractConnection) -> object:
    """Read a reply, and return rather than raise an error: other replies follow."""
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


class _Pool(ConnectionPool):
    """A pool whose idle connections can be dropped while others are in use."""

    async def take(self) -> AbstractConnection:
        """Take a connection that is believed to work; return it with `release`."""
        connection: AbstractConnection = await ConnectionPool.get_connection(self)
        return connection

    async def drop_idle(self) -> None:
        """Close the idle connections."""
        idle = self._available_connections[:]
        # Removed first, so that none is taken while it is being closed.
        self._available_connections.clear()
        for connection in idle:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)


class _SentinelPool(_Pool, SentinelConnectionPool):
    """Connections to the primary that Sentinels name, which are asked for every new connection."""


class _LooksUp(Connection):
    """Looks the name of its host up before it connects: uvloop logs a lookup that fails after its connection was given up."""

    async def _connect(self) -> None:
        async with asyncio.timeout(self.socket_connect_timeout):
            await asyncio.get_running_loop().getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM
            )
        await super()._connect()  # type: ignore[no-untyped-call]


class _Tls(_LooksUp, SSLConnection):
    """With TLS."""


class _ToPrimary(_LooksUp, SentinelManagedConnection):
    """To the primary that Sentinels name."""


class _ToPrimaryByTls(_LooksUp, SentinelManagedSSLConnection):
    """The same with TLS."""


def _pool(address: redis_url.Address, timeout: float) -> _Pool:
    """Create the pool. redis-py's defaults would wait and retry far longer."""
    options = connection_options(address, timeout) | {
        # Replies stay bytes: metadata are not always UTF-8.
        "decode_responses": False,
        # Every command has a deadline as a whole. redis-py's own would cost a task and a timer for
        # each, a third of all, and lose cancellations (asyncio.wait_for before Python 3.12).
        "socket_timeout": None,
        "health_check_interval": _IDLE_SECONDS,
        # One immediate retry, for the check of an idle connection, which then connects anew. Commands
        # do not use it and are never repeated.
        "retry": Retry(NoBackoff(), 1),
    }
    # Its types do not tell what a connection is made with.
    create: Callable[..., _Pool] = _Pool
    if address.path is not None:
        return create(UnixDomainSocketConnection, path=address.path, **options)
    options["socket_keepalive"] = True
    tls = address.tls_options()
    if address.sentinels:
        return _sentinel_pool(address, timeout, {**options, **tls})
    options |= {"host": address.host, "port": address.port}
    if not tls:
        return create(_LooksUp, **options)
    # The class says so.
    del tls["ssl"]
    return create(_Tls, **options, **tls)


def _sentinel_pool(
    address: redis_url.Address, timeout: float, options: dict[str, object]
) -> _SentinelPool:
    # All attempts must fit into the deadline of a command: the first Sentinels may be gone.
    each = timeout / (len(address.sentinels) + 1)
    sentinel = Sentinel(
        address.sentinels,
        sentinel_kwargs=sentinel_options(address, each) | {"retry": Retry(NoBackoff(), 0)},
    )
    for client in sentinel.sentinels:
        client.connection_pool.connection_class = _Tls if address.tls else _LooksUp
    return _SentinelPool(  # type: ignore[no-untyped-call]  # its base has no types
        address.service,
        sentinel,
        connection_class=_ToPrimaryByTls if address.tls else _ToPrimary,
        **options,
    )


def connection_options(address: redis_url.Address, timeout: float) -> dict[str, object]:
    """Return redis-py's options for connections, blocking or not. timeout: seconds to connect."""
    return {
        "db": address.db,
        "username": address.username,
        "password": address.password,
        # One round trip less for each connection; nothing of the newer protocol is needed.
        "protocol": 2,
        "driver_info": None,
        "socket_connect_timeout": timeout,
    }


def sentinel_options(address: redis_url.Address, timeout: float) -> dict[str, object]:
    """Return redis-py's options for connections to Sentinels. timeout: seconds to connect, and to wait for a reply."""
    return {
        "username": address.sentinel_username,
        "password": address.sentinel_password,
        "socket_connect_timeout": timeout,
        "socket_timeout": timeout,
        **address.tls_options(),
    }


def _is_away(error: Exception) -> bool | None:
    """Classify an error: True if nothing works, False if only writes fail, None if it concerns one command."""
    if isinstance(error, ReadOnlyError | OutOfMemoryError):
        return False
    if isinstance(error, DataError):
        # The command was not even sent.
        return None
    if isinstance(error, ClusterDownError) or not isinstance(error, ResponseError):
        # ClusterDownError also means that the primary is down.
        return True
    text = str(error)
    if _REFUSED.search(text):
        return False
    return True if _DOWN.search(text) else None


def _too_old(info: object) -> str | None:
    """Return what is wrong with the version in INFO, or None; also None if there is none."""
    found = re.search(
        rb"^redis_version:(\d+)\.(\d+)(\S*)", info if isinstance(info, bytes) else b"", re.MULTILINE
    )
    if found is None or (int(found[1]), int(found[2])) >= OLDEST:
        return None
    version = b".".join(found.group(1, 2)).decode() + found[3].decode("ascii", "replace")
    return f"this is Redis {version}; at least {OLDEST[0]}.{OLDEST[1]} is needed"


def read_line(path: Path) -> str | None:
    """Return the content of a file of one line, or None if it is empty or cannot be read."""
    try:
        return path.read_text("ascii", "replace").strip() or None
    except OSError:
        return None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n")
    except OSError as error:
        logs.event(logger, logging.WARNING, "cannot remember", path=path, reason=error.strerror)
