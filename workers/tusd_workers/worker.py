"""A worker: takes jobs from the queues and does them, one at a time in a process, until it is told to end.

It is rq's, in the process itself (a fork would cost more than most jobs), and goes on through outages of Redis: what rq gives
up is begun anew here. SIGTERM lets it finish the job in hand; a second one does not. Of rq's own features only the loop, the
queues and the list of workers are used: what would let others direct a worker through Redis (commands, suspension, callbacks,
dependencies, results) is left out.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from types import FrameType
from typing import cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.exceptions import StopRequested
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.timeouts import JobTimeoutException
from rq.utils import now
from rq.worker import WorkerStatus

from tusd_py import logs
from tusd_py.events.model import HookError
from tusd_py.jobs.connection import Refusals, connect, redis_url
from tusd_py.jobs.legacy import LegacyJobs
from tusd_py.jobs.queues import DELIVERY, QUEUES, QueueKeys
from tusd_py.jobs.rq_classes import TableJob, job_class, queue_class, set_aside_unless
from tusd_py.process import parent as ending
from tusd_py.process.supervisor import Supervisor
from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError
from tusd_workers import current, delivery_runner

logger = logging.getLogger(__name__)

_ALIVE = 30
"""Seconds in which a worker says that it lives, and another minute after which it is taken for dead."""
_WAIT_FOR_JOB = 5
"""Seconds for which Redis is asked to wait for a job, before it is asked again."""
_ANSWER_TIMEOUT = 10
"""Seconds without an answer after which a connection is given up, and Redis looked for anew: longer than a wait for a job."""
_IDLE_INTERVAL = 10.0
"""Seconds between looks for jobs of an older version."""
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
        self.refusals: Refusals | None = None
        """Of the Redis for which this process works."""

    def begin(self, problem: RedisError) -> None:
        """It does not answer, or refuses."""
        if self.refusals is not None and self.refusals.report(problem):
            return
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
        told: list[object] = [record.exc_info[1]] if record.exc_info else []
        told += record.args or ()
        return not any(self.is_told_of(problem) for problem in told)

    def is_told_of(self, problem: object) -> bool:
        """Whether this is about Redis; then it has been said."""
        if isinstance(problem, RedisError):
            self.begin(problem)
            return True
        return False


_outage = _Outage()


class _Worker(SimpleWorker):
    """rq's, told apart in that it waits for Redis no longer than need be, and ends even while Redis is away."""

    max_connection_wait_time = 2.0
    log_result_lifespan = False
    keys: QueueKeys
    told: threading.Event
    """Set by a signal that came before rq listened to any."""
    on_idle: Callable[[], None]
    """Called from time to time, between jobs."""
    _idle_at = 0.0

    # Its life

    @property
    def dequeue_timeout(self) -> int:
        """Seconds. rq's own is half of the time to live, and no command would notice earlier that its Redis stands still."""
        return _WAIT_FOR_JOB

    @property
    def connection_timeout(self) -> int:
        """Seconds, of every command."""
        return _ANSWER_TIMEOUT

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
            self.register_birth()
        if pipeline is None and time.monotonic() >= self._idle_at:
            self._idle_at = time.monotonic() + _IDLE_INTERVAL
            self.on_idle()

    def register_birth(self) -> None:
        """Put itself on the list of workers."""
        self.birth_date = self.last_heartbeat = now()
        set_aside_unless(self.connection, self.keys, self.keys.workers(), "set")
        with self.connection.pipeline() as pipeline:
            pipeline.delete(self.key)
            pipeline.hset(self.key, mapping=self.serialize())
            pipeline.expire(self.key, self.worker_ttl + 60)
            pipeline.sadd(self.keys.workers(), self.key)
            pipeline.execute()

    def register_death(self) -> None:
        """Take itself off the list of workers."""
        with self.connection.pipeline() as pipeline:
            pipeline.srem(self.keys.workers(), self.key)
            pipeline.delete(self.key)
            pipeline.execute()

    def set_shutdown_requested_date(self) -> None:
        """For others to see only: not worth failing the job in hand."""
        with suppress(RedisError):
            super().set_shutdown_requested_date()  # type: ignore[no-untyped-call]

    def teardown(self) -> None:
        """Takes itself off the list of workers; while Redis is away it is forgotten there by itself."""
        with suppress(RedisError):
            super().teardown()  # type: ignore[no-untyped-call]

    @property
    def executions_key(self) -> str:
        """Of no use here; rq prolongs it with each heartbeat."""
        return f"{self.key}:executions"

    # What others cannot do to it

    def subscribe(self) -> None:
        """Listen to no channel: whoever can publish in Redis could end this worker, or its job."""

    def unsubscribe(self) -> None:
        """There is nothing to end."""

    def check_for_suspension(self, burst: bool) -> None:
        """Never: rq's mark of a suspension is one for all that use the Redis."""

    def _set_ip_address(self, _connection: Redis) -> None:
        self.ip_address = "unknown"

    def get_redis_server_version(self) -> tuple[int, int, int]:
        """The oldest one that is used; nothing here needs to know."""
        return (6, 2, 0)

    # Jobs

    def run_maintenance_tasks(self) -> None:
        """Forget jobs that failed or were begun long ago."""
        for queue in self.queue_names():
            for key in (self.keys.failed(queue), self.keys.running(queue)):
                set_aside_unless(self.connection, self.keys, key, "zset")
                self.connection.zremrangebyscore(key, "-inf", time.time())
        self.last_cleaned_at = now()  # type: ignore[assignment]  # rq's own does so too

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Carry out a job. Raises RedisError if Redis cannot be told of its begin or end."""
        job = cast(TableJob, job)
        self._begin(job, queue.name)
        try:
            with self.death_penalty_class(job.kind.timeout, JobTimeoutException, job_id=job.id):
                job.perform()
        except Exception as problem:  # noqa: BLE001 -- the edge of a job
            if not _outage.is_told_of(problem):
                reason = f"{type(problem).__name__}: {problem}"
                logs.event(
                    logger, logging.ERROR, "job failed", job=job.id, reason=reason, exc_info=problem
                )
            self._end(job, queue.name, failed=True)
        else:
            self._end(job, queue.name, failed=False)

    def _begin(self, job: TableJob, queue: str) -> None:
        lasts = job.kind.timeout + 60
        with self.connection.pipeline() as pipeline:
            self.set_state(WorkerStatus.BUSY, pipeline=pipeline)
            pipeline.hset(self.key, "current_job", job.id)
            self.heartbeat(lasts, pipeline=pipeline)
            pipeline.zadd(self.keys.running(queue), {job.id: time.time() + lasts})
            # Until it is done: there is no second one of the same id.
            pipeline.expire(job.key, lasts)
            pipeline.execute()

    def _end(self, job: TableJob, queue: str, *, failed: bool) -> None:
        lasts = job.kind.failure_ttl if failed else job.kind.result_ttl
        with self.connection.pipeline() as pipeline:
            pipeline.zrem(self.keys.running(queue), job.id)
            if failed:
                pipeline.zadd(self.keys.failed(queue), {job.id: time.time() + lasts})
            pipeline.expire(job.key, lasts)
            pipeline.hdel(self.key, "current_job")
            self.set_state(WorkerStatus.IDLE, pipeline=pipeline)
            pipeline.execute()


@lru_cache
def _worker_class(prefix: str) -> type[_Worker]:
    """rq's class of the workers of an instance; prefix: of its keys."""
    keys = QueueKeys(prefix)
    return type(
        "PrefixedWorker",
        (_Worker,),
        {
            "keys": keys,
            "redis_worker_namespace_prefix": keys.worker(""),
            "redis_workers_keys": keys.workers(),
            "queue_class": queue_class(prefix),
            "job_class": job_class(prefix),
        },
    )


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
        with delivery_runner.running(current.instance()):
            return _take(settings, url, queues)
    except HookError as problem:
        logger.error("%s", problem)
        return 2


def _take(settings: Settings, url: str, queues: Sequence[str]) -> int:
    """Takes jobs until it is told to end."""
    told = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        told.set()

    logs.event(logger, logging.INFO, "working", queues=",".join(queues))
    logging.getLogger("rq.worker").addFilter(_outage)
    _outage.refusals = refusals = Refusals(url)
    while not told.is_set():
        # rq's own take their place while it works.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        try:
            worker = _made(settings, url, queues)
            refusals.check(worker.connection, settings.redis_prefix)
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


def _made(settings: Settings, url: str, queues: Sequence[str]) -> _Worker:
    connection = connect(url)
    legacy = LegacyJobs(connection, settings.redis_prefix)
    worker = _worker_class(settings.redis_prefix)(
        list(queues), connection=connection, worker_ttl=_ALIVE, serializer=JSONSerializer
    )

    def look_anew() -> None:
        if DELIVERY in queues:
            delivery_runner.current().queue_missing()

    def replace_older() -> None:
        try:
            legacy.replace_queued(look_anew)
        except StorageError as problem:
            # They stay where they are until the outbox can be read.
            logs.event(logger, logging.WARNING, "older jobs not replaced", reason=str(problem))

    worker.on_idle = replace_older
    return worker
