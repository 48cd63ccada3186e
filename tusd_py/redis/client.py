"""The connection to Redis: pooled, with a deadline for every command, and quick to fail while Redis
is away.

What fails is a `RedisUnavailable`, whatever the reason; callers decide what that means for an
upload. That it went away and that it came back is logged here, once each. Nothing is repeated here
once it may have been carried out.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypedDict, cast

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
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
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
from tusd_py.background import keep_running, spawn
from tusd_py.redis import permissions
from tusd_py.redis.keys import DEFAULT_PREFIX, Keys
from tusd_py.redis.scripts import Script
from tusd_py.settings import redis_url

logger = logging.getLogger(__name__)

Part: TypeAlias = bytes | str | int | float
"""A piece of a command. Text is sent as UTF-8."""

OLDEST = (6, 2)
"""The oldest version that is used: Redis 6.2, whose commands Valkey has too."""

_CONNECTIONS = 32
"""Most that are used at a time; more commands would only wait inside Redis, which runs one after the other."""
_TOGETHER = 64
"""Most commands that are sent in one go."""
_IDLE = 10.0
"""Seconds without a command after which a connection is asked whether it still works, because
firewalls forget connections without telling.
"""
_HEARTBEAT = 30.0
"""Seconds between questions to a Redis that nobody else asks anything."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
"""Seconds between questions to a Redis that is away, at first and in the end."""
_REPEAT_ERROR = 60.0
"""Seconds before the same error of a script is logged again."""
_PROBE_TTL = 60_000
"""Milliseconds."""

_PROBE = Script(
    "probe",
    """\
redis.call('SET', KEYS[1], '1', 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[1], 'NX')
return redis.call('GET', KEYS[2])
""",
)

# Replies that say that Redis takes no writes now. Redis 6.2 puts them into the middle of a
# sentence when a script met them.
_REFUSED = re.compile(r"(?:^|-)(READONLY|OOM|MISCONF|NOREPLICAS|BUSY) ")
_DOWN = re.compile(r"(?:^|-)(MASTERDOWN|CLUSTERDOWN|NOAUTH|WRONGPASS) ")


class RedisUnavailable(Exception):
    """Redis did not do what it was asked. The text is for the log; it never has the password."""


@dataclass(frozen=True)
class _Trouble:
    """What is wrong with Redis."""

    reason: str
    away: bool
    """Whether nothing works; otherwise it answers, but takes no writes."""
    began: float
    """By the monotonic clock."""


@dataclass(slots=True, eq=False)
class _Command:
    """One that is to be sent. packed: as it goes over the wire; script: what EVALSHA means; deadline: by the loop's clock."""

    parts: Sequence[Part]
    script: Script | None
    packed: bytes
    deadline: float
    answer: asyncio.Future[object]

    def settle(self, answer: object) -> None:
        """Tells whoever waits what Redis answered: an exception if that is an error."""
        if self.answer.done():
            # They do not wait any more.
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class RedisClient:
    """A Redis and what is known about whether it works. One for each process."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = DEFAULT_PREFIX,
        timeout: float = 1.0,
        on_failure: Callable[[], None] | None = None,
        memory: Path | None = None,
    ) -> None:
        """Does not connect yet. Raises ValueError if the URL is wrong.

        `timeout` (seconds) is the deadline of a command with everything that it needs: waiting for
        a connection, connecting, the answer. `on_failure` is called for every command that fails.
        `memory` is a file that remembers between runs which Redis this was, so that one that was
        emptied is noticed; its directory must exist.
        """
        self.prefix = prefix
        self.keys = Keys(prefix)
        self.address = redis_url.parse(url)
        self.timeout = timeout
        self._pool = _pool(self.address, timeout)
        self.client: Redis = Redis(connection_pool=self._pool)
        """For what `command` and `run` cannot do: subscriptions. Raises redis-py's own errors."""
        self._on_failure = on_failure
        self._memory = memory
        self._secrets = _secrets(self.address)
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._waiting: list[_Command] = []
        self._sent: set[asyncio.Task[None]] = set()
        self._trouble: _Trouble | None = None
        self._logged: bool | None = None
        """Whether the log says that Redis is away; None if it says that it works."""
        self._verified = False
        """Whether its version is known to do."""
        self._known: str | None = None
        self._stopped = False
        self._asked = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._reported: dict[tuple[str, str], float] = {}

    @property
    def available(self) -> bool:
        """Whether Redis took writes when it was last asked. No command is sent to find out."""
        return self._trouble is None and not self._stopped

    @property
    def trouble(self) -> str | None:
        """What is wrong, for the log; None if nothing is."""
        return None if self._trouble is None else self._trouble.reason

    async def start(self) -> None:
        """Connect. A Redis that is away is logged; it is used as soon as it is there."""
        if self._memory is not None:
            self._known = await asyncio.to_thread(_read, self._memory)
        trouble = await self._probe()
        if trouble is not None:
            self._begin(trouble)
            self._say_away(trouble)
        self._watcher = keep_running(self._watch, "redis")

    async def stop(self) -> None:
        """Close all connections. Commands fail from now on."""
        self._stopped = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        await self._pool.drop_idle()
        with suppress(RedisError, OSError):
            await self._pool.disconnect()

    async def command(self, *parts: Part) -> object:
        """Send one command; its answer as Redis gives it (bytes, int, None, list).

        Raises RedisUnavailable, no later than the deadline; at once while Redis is away. Whether a
        command that failed was carried out is not known.
        """
        return await self._ask(str(parts[0]), parts, None)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Part] = ()) -> object:
        """Run a script; what it returns. Raises RedisUnavailable as `command` does."""
        parts = (script.sha, len(keys), *keys, *args)
        return await self._ask(script.name, ("EVALSHA", *parts), script)

    async def run_each(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Part]]]
    ) -> list[object]:
        """Run a script with each of these keys and arguments, some dozens of them, in one go.

        Returns what it returned for each. Raises RedisUnavailable as `command` does, if any of them fails; others may have
        been carried out.
        """
        if not calls:
            return []
        answers = [
            self._queue(("EVALSHA", script.sha, len(keys), *keys, *args), script)
            for keys, args in calls
        ]
        try:
            await asyncio.wait(answers)
        finally:
            failed = [answer for answer in answers if answer.cancel() or answer.exception()]
        if failed:
            await self._answered(script.name, failed[0])
        return [answer.result() for answer in answers]

    async def check(self) -> str | None:
        """Ask Redis now whether it works: None, or what is wrong. For health checks."""
        if self._trouble is None:
            trouble = await self._probe()
            if trouble is not None:
                self._begin(trouble)
        return self.trouble

    # Asking

    async def _ask(self, name: str, parts: Sequence[Part], script: Script | None) -> object:
        return await self._answered(name, self._queue(parts, script))

    def _queue(self, parts: Sequence[Part], script: Script | None) -> asyncio.Future[object]:
        """Has a command sent, together with all others of the same turn of the event loop; its answer to come."""
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
        for begin in range(0, len(waiting), _TOGETHER):
            batch = waiting[begin : begin + _TOGETHER]
            spawn(self._carry_out(batch), "redis commands", self._sent)

    async def _answered(self, name: str, answer: asyncio.Future[object]) -> object:
        """What Redis answers. Raises RedisUnavailable."""
        try:
            return await answer
        except RedisUnavailable:
            self._count()
            raise
        except (RedisError, OSError) as error:
            # OSError is the deadline, too.
            self._count()
            raise self._judged(name, error) from None

    def _fail_if_away(self) -> None:
        trouble = self._trouble
        if trouble is not None and trouble.away:
            raise RedisUnavailable(f"Redis is away: {trouble.reason}")

    async def _carry_out(self, commands: Sequence[_Command]) -> None:
        """Sends commands, and tells those who wait before the deadline of the first of them."""
        try:
            async with (
                asyncio.timeout_at(commands[0].deadline),
                self._connection() as connection,
            ):
                await self._exchange(connection, commands)
        except (RedisUnavailable, RedisError, OSError) as error:
            # What was answered stays answered.
            for command in commands:
                command.settle(error)
        finally:
            # Nobody waits for ever, whatever it was.
            for command in commands:
                command.answer.cancel()

    @staticmethod
    async def _exchange(connection: AbstractConnection, commands: Sequence[_Command]) -> None:
        """Sends commands and settles each. Raises an answer after which the connection is of no use any more."""
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
            # Not carried out, so it may be sent again; EVAL makes Redis remember the script.
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
        """One that nobody else uses meanwhile, when it is our turn."""
        async with self._slots:
            # It may have gone while this waited for its turn.
            self._fail_if_away()
            connection = await self._pool.take()
            try:
                yield connection
            except ResponseError as error:
                if _is_away(error) is not None:
                    # What takes no writes may take none ever, and another server have its name.
                    await connection.disconnect(nowait=True)
                raise
            finally:
                if self._stopped:
                    # It may have been made after all others were closed.
                    await connection.disconnect(nowait=True)
                await self._pool.release(connection)

    def _count(self) -> None:
        if self._on_failure is not None:
            self._on_failure()

    def _judged(self, name: str, error: Exception) -> RedisUnavailable:
        """What to tell the caller about a failure; what follows from it has been begun."""
        reason = self._reason(error)
        away = _is_away(error)
        if away is None:
            self._report_error(name, reason)
        else:
            self._begin(_Trouble(reason, away, time.monotonic()))
        return RedisUnavailable(f"{name}: {reason}")

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError | RedisTimeoutError):
            return f"no answer from {self.address} within {self.timeout:g} s"
        text = str(error) or type(error).__name__
        if isinstance(error, ReadOnlyError) and "READONLY" not in text:
            text = f"READONLY {text}"
        if isinstance(error, NoPermissionError) and "NOPERM" not in text:
            text = f"NOPERM {text}"
        for secret in self._secrets:
            text = text.replace(secret, "********")
        return text

    def _report_error(self, name: str, reason: str) -> None:
        """An error that says nothing about Redis as a whole, such as a mistake in a script."""
        key, now = (name, reason[:80]), time.monotonic()
        if reason.startswith("NOPERM"):
            # A script is refused for a command in it, which the log has by now.
            if not permissions.is_reported(str(self.address)):
                permissions.report(str(self.address), name, reason.removeprefix("NOPERM "))
            return
        if now - self._reported.get(key, -_REPEAT_ERROR) >= _REPEAT_ERROR:
            if len(self._reported) > 100:
                self._reported.clear()
            self._reported[key] = now
            logs.event(logger, logging.ERROR, "redis error", command=name, reason=reason)

    # Knowing whether it works

    def _begin(self, trouble: _Trouble) -> None:
        """Note that something is wrong, and have it looked at now."""
        self._verified = False
        current = self._trouble
        if current is not None and (current.away or not trouble.away):
            return
        self._trouble = trouble
        self._asked.set()

    async def _watch(self) -> None:
        """Ask from time to time whether Redis works, and often while it does not."""
        pause = _FIRST_PAUSE
        # Python 3.11 loses a cancellation now and then (asyncio.wait_for, which redis-py uses).
        while not self._stopped:
            trouble = self._trouble
            if trouble is None:
                pause = _FIRST_PAUSE
                await self._wait(_HEARTBEAT)
            elif self._logged is not None:
                self._asked.clear()
                # Several servers shall not ask in step.
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311
                pause = min(pause * 2, _LONGEST_PAUSE)
            if self._trouble is not None:
                # They may lead to a server that is none any more.
                await self._pool.drop_idle()
            try:
                found = await self._probe()
            except Exception as error:  # noqa: BLE001
                # The edge of a job, without which Redis would be away for ever.
                logs.event(logger, logging.ERROR, "redis probe failed", exc_info=error)
                found = _Trouble(repr(error), True, time.monotonic())
            self._settle(found)

    async def _wait(self, seconds: float) -> None:
        """Until something is wrong, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        except TimeoutError:
            pass
        self._asked.clear()

    def _settle(self, found: _Trouble | None) -> None:
        """Take note of what asking has shown."""
        before = self._trouble
        if found is None:
            self._trouble = None
            if before is not None:
                self._say_back(before)
            return
        # Since when it is so stays; what is wrong may have changed.
        began = found.began if before is None else before.began
        self._trouble = _Trouble(found.reason, found.away, began)
        self._say_away(self._trouble)

    def _say_away(self, trouble: _Trouble) -> None:
        if self._logged is trouble.away:
            return
        self._logged = trouble.away
        what = "redis away" if trouble.away else "redis takes no writes"
        logs.event(logger, logging.WARNING, what, server=str(self.address), reason=trouble.reason)

    def _say_back(self, trouble: _Trouble) -> None:
        seconds = round(time.monotonic() - trouble.began, 3)
        if self._logged is not None:
            logs.event(
                logger, logging.WARNING, "redis back", server=str(self.address), after=seconds
            )
        else:
            # A connection that broke, an answer that came late: it works when asked again.
            logs.event(logger, logging.WARNING, "redis failed once", reason=trouble.reason)
        self._logged = None

    async def _probe(self) -> _Trouble | None:
        """Ask for a write, on a path of its own that is never closed. What is wrong, or None."""
        try:
            async with asyncio.timeout(self.timeout):
                return await self._probe_unbounded()
        except (RedisError, OSError) as error:
            return _Trouble(self._reason(error), _is_away(error) is not False, time.monotonic())

    async def _probe_unbounded(self) -> _Trouble | None:
        connection = await self._pool.take()
        try:
            if not self._verified:
                await connection.send_command("INFO", "server")
                # A user whom nobody lets read it has a Redis that is new enough for users.
                with suppress(NoPermissionError):
                    problem = _too_old(await connection.read_response())
                    if problem is not None:
                        return _Trouble(problem, True, time.monotonic())
                await self._check_permissions(connection)
            mark = secrets.token_hex(8)
            keys = (self.keys.probe(), self.keys.since())
            await connection.send_command("EVAL", _PROBE.source, 2, *keys, mark, _PROBE_TTL)
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
        """Log, once each, the commands that are needed and that this user may not run."""
        asked = permissions.questions(self.keys)
        sent = [("MULTI",), *asked, ("DISCARD",)]
        await connection.send_packed_command([_packed(question) for question in sent])
        answers = [await _response_or_error(connection) for _ in sent]
        for command, reason in permissions.refused(sent[:-1], answers[:-1]):
            permissions.report(str(self.address), command, reason)

    async def _recognise(self, found: str) -> None:
        """Notice that this Redis is not the one that it was, or has lost what it knew."""
        if found == self._known:
            return
        if self._known is not None:
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
    """A command as it is sent; ten times as fast as redis-py does it."""
    # Any number of parts, whatever its types say.
    packed: bytes = hiredis.pack_command(tuple(parts))  # type: ignore[arg-type]
    return packed


async def _response_or_error(connection: AbstractConnection) -> object:
    """An answer, also one that is an error: others follow it."""
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


class _Droppable(ConnectionPool):
    """Connections that can be dropped while others are taken and given back."""

    async def take(self) -> AbstractConnection:
        """A connection that works, as far as is known; to be given back by `release`."""
        connection: AbstractConnection = await ConnectionPool.get_connection(self)
        return connection

    async def drop_idle(self) -> None:
        """Close the connections that nobody uses now."""
        idle = self._available_connections[:]
        # Out of the pool first: nobody shall take one that is being closed.
        self._available_connections.clear()
        for connection in idle:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)


class _Pool(_Droppable):
    """To one server."""


class _SentinelPool(_Droppable, SentinelConnectionPool):
    """To the primary that Sentinels name, asked with every new connection."""


class _Common(TypedDict):
    """Options of redis-py for connections of every kind."""

    db: int
    username: str | None
    password: str | None
    decode_responses: bool
    protocol: int
    driver_info: None
    socket_timeout: None
    socket_connect_timeout: float
    health_check_interval: float
    retry: Retry


def _pool(address: redis_url.Address, timeout: float) -> _Droppable:
    """Connections as we want them; redis-py's own defaults wait and repeat far longer."""
    common = _Common(
        db=address.db,
        username=address.username,
        password=address.password,
        # The bytes as they are: metadata are not always UTF-8.
        decode_responses=False,
        # One round trip less for each connection; nothing of the newer protocol is needed.
        protocol=2,
        driver_info=None,
        # Every command has a deadline as a whole. redis-py's own would cost a task and a timer for
        # each, a third of all, and lose cancellations (asyncio.wait_for before Python 3.12).
        socket_timeout=None,
        socket_connect_timeout=timeout,
        health_check_interval=_IDLE,
        # Once, at once: for the question whether an idle connection still works, which is answered
        # by a new connection. Commands do not go this way and are never repeated.
        retry=Retry(NoBackoff(), 1),
    )
    if address.sentinels:
        return _sentinel_pool(address, timeout, common)
    if address.path is not None:
        return _Pool(connection_class=UnixDomainSocketConnection, path=address.path, **common)
    host, port = address.host, address.port
    if not address.tls:
        return _Pool(
            connection_class=Connection, host=host, port=port, socket_keepalive=True, **common
        )
    return _Pool(
        connection_class=SSLConnection,
        host=host,
        port=port,
        socket_keepalive=True,
        ssl_ca_certs=address.ca_file,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
        ssl_cert_reqs="required" if address.verify else "none",
        ssl_check_hostname=address.verify,
        **common,
    )


def _sentinel_pool(address: redis_url.Address, timeout: float, common: _Common) -> _SentinelPool:
    # All of them have to fit into the deadline of a command: those that are asked first may be gone.
    each = timeout / (len(address.sentinels) + 1)
    tls = address.tls_options()
    sentinel = Sentinel(
        address.sentinels,
        sentinel_kwargs={
            "username": address.sentinel_username,
            "password": address.sentinel_password,
            "socket_connect_timeout": each,
            "socket_timeout": each,
            "retry": Retry(NoBackoff(), 0),
            **tls,
        },
    )
    return _SentinelPool(  # type: ignore[no-untyped-call]  # its base has no types
        address.service, sentinel, socket_keepalive=True, **tls, **common
    )


def _is_away(error: Exception) -> bool | None:
    """True if nothing works, False if only writes do not, None if it is about one command."""
    if isinstance(error, ReadOnlyError | OutOfMemoryError):
        return False
    if isinstance(error, DataError):
        # It was not even sent.
        return None
    if isinstance(error, ClusterDownError) or not isinstance(error, ResponseError):
        # ClusterDownError stands for a primary that is down, too.
        return True
    text = str(error)
    if _REFUSED.search(text):
        return False
    return True if _DOWN.search(text) else None


def _too_old(info: object) -> str | None:
    """What is wrong with the version that INFO tells; None if nothing is, or if it tells none."""
    found = re.search(
        rb"^redis_version:(\d+)\.(\d+)(\S*)", info if isinstance(info, bytes) else b"", re.MULTILINE
    )
    if found is None or (int(found[1]), int(found[2])) >= OLDEST:
        return None
    version = b".".join(found.group(1, 2)).decode() + found[3].decode("ascii", "replace")
    return f"this is Redis {version}; at least {OLDEST[0]}.{OLDEST[1]} is needed"


def _secrets(address: redis_url.Address) -> tuple[str, ...]:
    return tuple(filter(None, (address.password, address.sentinel_password)))


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii", "replace").strip() or None
    except OSError:
        return None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n")
    except OSError as error:
        logs.event(logger, logging.WARNING, "cannot remember", path=path, reason=error.strerror)
