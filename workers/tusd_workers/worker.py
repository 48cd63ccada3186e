"""A worker: takes jobs from the queues and does them, one at a time in a process, until it is told to end.

It is rq's, in the process itself (a fork would cost more than most jobs), and goes on through outages of Redis: what rq gives
up is begun anew here. SIGTERM lets it finish the job in hand; a second one does not.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import SimpleWorker
from rq.exceptions import StopRequested

from tusd_py import logs
from tusd_py.events import HookError
from tusd_py.settings.model import Settings
from tusd_py.web.supervisor import Supervisor
from tusd_workers import current, desk, ending
from tusd_workers.connection import connect, redis_url
from tusd_workers.queues import DELIVERY, QUEUES, queue_name

logger = logging.getLogger(__name__)

_ALIVE = 30
"""Seconds in which a worker says that it lives, and another minute after which it is taken for dead."""
_PAUSE = 1.0
"""Seconds between attempts while Redis is away."""
_PATIENCE = 86_400.0
"""Seconds for jobs in hand to end after SIGTERM. Whoever has less patience sends SIGKILL: jobs bear it."""


class _Outage(logging.Filter):
    """Says once that Redis went away and once that it is back. rq says so every other second, and at length where Redis
    went away during a job: as a filter of its log this leaves that out."""

    def __init__(self) -> None:
        super().__init__()
        self._away = False

    def begin(self, problem: RedisError) -> None:
        """It does not answer."""
        if not self._away:
            logs.event(logger, logging.WARNING, "redis away", reason=type(problem).__name__)
        self._away = True

    def end(self) -> None:
        """It does."""
        if self._away:
            logs.event(logger, logging.WARNING, "redis back")
        self._away = False

    def filter(self, record: logging.LogRecord) -> bool:
        """False for what is about Redis."""
        told = [record.exc_info[1]] if record.exc_info else []
        told += [each for each in record.args or () if isinstance(each, RedisError)]
        for problem in told:
            if isinstance(problem, RedisError):
                self.begin(problem)
                return False
        return True


_outage = _Outage()


class _Worker(SimpleWorker):
    """rq's, told apart in that it waits for Redis no longer than need be, and ends even while Redis is away."""

    max_connection_wait_time = 2.0
    log_result_lifespan = False
    told: threading.Event
    """Set by a signal that came before rq listened to any."""

    @property
    def was_told_to_end(self) -> bool:
        """Whether it ended because it should."""
        return self._shutdown_requested_date is not None

    def _install_signal_handlers(self) -> None:
        super()._install_signal_handlers()  # type: ignore[no-untyped-call]
        if self.told.is_set():
            raise StopRequested

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Says that it lives. A Redis that was emptied is told anew who it is: rq does so only once."""
        super().heartbeat(timeout, pipeline)
        if pipeline is None:
            _outage.end()
        if pipeline is None and not self.connection.hexists(self.key, "birth"):
            self.connection.delete(self.key)
            self.register_birth()  # type: ignore[no-untyped-call]

    def set_shutdown_requested_date(self) -> None:
        """For others to see only: not worth failing the job in hand."""
        with suppress(RedisError):
            super().set_shutdown_requested_date()  # type: ignore[no-untyped-call]

    def teardown(self) -> None:
        """Takes itself off the list of workers; while Redis is away it is forgotten there by itself."""
        with suppress(RedisError):
            super().teardown()  # type: ignore[no-untyped-call]


def run(settings: Settings, queues: Sequence[str] = QUEUES, *, concurrency: int = 1) -> int:
    """Works until SIGTERM or SIGINT; returns the exit code. concurrency: processes, each with one job at a time.

    Raises EmbeddedStateError.
    """
    ending.follow_parent()
    with redis_url(settings) as url:
        if concurrency == 1:
            return _work(settings, url, queues)

        def work(_index: int) -> int:
            ending.follow(supervisor.parent.fileno())
            return _work(settings, url, queues)

        supervisor = Supervisor(concurrency, work, shutdown_timeout=_PATIENCE)
        return supervisor.run()


def _work(settings: Settings, url: str, queues: Sequence[str]) -> int:
    """One process's part."""
    current.use(settings, url)
    if DELIVERY not in queues:
        return _take(settings, url, queues)
    try:
        with desk.opened(current.instance()):
            return _take(settings, url, queues)
    except HookError as problem:
        logger.error("%s", problem)
        return 2


def _take(settings: Settings, url: str, queues: Sequence[str]) -> int:
    """Takes jobs until it is told to end."""
    told = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        told.set()

    names = [queue_name(settings.redis_prefix, queue) for queue in queues]
    logs.event(logger, logging.INFO, "working", queues=",".join(queues))
    logging.getLogger("rq.worker").addFilter(_outage)
    while not told.is_set():
        # rq's own take their place while it works.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        try:
            worker = _Worker(names, connection=connect(url), worker_ttl=_ALIVE)
            worker.told = told
            try:
                worker.work(logging_level="WARNING")
            except StopRequested:
                worker.teardown()
            if worker.was_told_to_end:
                break
        except RedisError as problem:
            _outage.begin(problem)
        told.wait(_PAUSE)
    logs.event(logger, logging.INFO, "worker stopped")
    return 0
