"""A worker: runs jobs from the queues, one at a time per process, until it is stopped by a signal.

It is rq's SimpleWorker, which runs jobs in its own process (a fork would cost more than most jobs), restarted after outages of
Redis. SIGTERM lets it finish the current job; a second one does not. Only rq's loop, queues and list of workers are used: the
features by which others could control a worker through Redis (commands, suspension, callbacks, dependencies, results) are off.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
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
from tusd_py.jobs.connection import OutageLog, connect, redis_url
from tusd_py.jobs.legacy import LegacyJobs
from tusd_py.jobs.queues import DELIVERY, EXPIRY, QUEUES, QueueKeys
from tusd_py.jobs.rq_classes import TableJob, job_class, queue_class, set_aside_unless
from tusd_py.process import parent as ending
from tusd_py.process import stopping
from tusd_py.process.supervisor import Supervisor
from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError
from tusd_workers import current, delivery_runner

logger = logging.getLogger(__name__)

_HEARTBEAT_SECONDS = 30
"""Interval of heartbeats; a minute after a missed one the worker counts as dead."""
_JOB_WAIT_SECONDS = 5
"""How long Redis waits for a job before it is asked again."""
_REPLY_TIMEOUT_SECONDS = 10
"""Time without a reply after which a connection is closed and Redis is looked up again; longer than a wait for a job."""
_IDLE_INTERVAL_SECONDS = 10.0
"""Interval of checks for jobs of an older version."""
_RETRY_PAUSE_SECONDS = 1.0
"""Pause between attempts to reach Redis."""
_STOP_SECONDS = 10.0
"""Time in which a worker without a job ends after SIGTERM, whatever Redis or the lookup of its name takes."""
_SHUTDOWN_TIMEOUT_SECONDS = 86_400.0
"""Time for running jobs to end after SIGTERM. Jobs survive a SIGKILL before that."""


class _OutageFilter(logging.Filter):
    """Drops the messages in which rq repeats an outage of Redis every other second, or at length during a job."""

    def __init__(self, outage: OutageLog) -> None:
        super().__init__()
        self._outage = outage

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop records about errors of Redis."""
        values: list[object] = [record.exc_info[1]] if record.exc_info else []
        values += record.args or ()
        return not any(self._outage.report(value) for value in values)


class _Worker(SimpleWorker):
    """rq's worker, which here reconnects to Redis quickly and can be stopped while Redis is unavailable."""

    max_connection_wait_time = 2.0
    log_result_lifespan = False
    keys: QueueKeys
    stop_event: threading.Event
    """Set by a signal that came before rq installed its handlers."""
    performing: threading.Event
    """Set while a job runs."""
    outage: OutageLog
    on_idle: Callable[[], None]
    """Called periodically between jobs."""
    _idle_at = 0.0
    _deliveries_first_until = 0.0

    # Start, heartbeat, stop

    @property
    def dequeue_timeout(self) -> int:
        """Seconds. rq's own is half of the time to live, and no command would notice earlier that its Redis stands still."""
        return _JOB_WAIT_SECONDS

    @property
    def connection_timeout(self) -> int:
        """Seconds, of every command."""
        return _REPLY_TIMEOUT_SECONDS

    @property
    def was_stopped(self) -> bool:
        """Whether a signal stopped it."""
        return self._shutdown_requested_date is not None

    def _install_signal_handlers(self) -> None:
        super()._install_signal_handlers()  # type: ignore[no-untyped-call]
        if self.stop_event.is_set():
            raise StopRequested

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Send a heartbeat. Register again if Redis was emptied: rq registers only once."""
        super().heartbeat(timeout, pipeline)
        if pipeline is None:
            self.outage.end()
        if pipeline is None and not self.connection.hexists(self.key, "birth"):
            self.connection.delete(self.key)
            self.register_birth()
        if pipeline is None and time.monotonic() >= self._idle_at:
            self._idle_at = time.monotonic() + _IDLE_INTERVAL_SECONDS
            self.on_idle()

    def register_birth(self) -> None:
        """Add the worker to the list of workers."""
        self.birth_date = self.last_heartbeat = now()
        set_aside_unless(self.connection, self.keys, self.keys.workers, "set")
        with self.connection.pipeline() as pipeline:
            pipeline.delete(self.key)
            pipeline.hset(self.key, mapping=self.serialize())
            pipeline.expire(self.key, self.worker_ttl + 60)
            pipeline.sadd(self.keys.workers, self.key)
            pipeline.execute()

    def register_death(self) -> None:
        """Remove the worker from the list of workers."""
        with self.connection.pipeline() as pipeline:
            pipeline.srem(self.keys.workers, self.key)
            pipeline.delete(self.key)
            pipeline.execute()

    def set_shutdown_requested_date(self) -> None:
        """Record the request for information only; an error must not fail the current job."""
        with suppress(RedisError):
            super().set_shutdown_requested_date()  # type: ignore[no-untyped-call]

    def teardown(self) -> None:
        """Remove the worker from the list; while Redis is unavailable its entry expires instead."""
        with suppress(RedisError):
            super().teardown()  # type: ignore[no-untyped-call]

    @property
    def executions_key(self) -> str:
        """Key that rq extends with each heartbeat; not used here."""
        return f"{self.key}:executions"

    # Remote control, all of it off

    def subscribe(self) -> None:
        """Listen to no channel: clients that can publish in Redis could stop this worker or its job."""

    def unsubscribe(self) -> None:
        """Do nothing, as there is no subscription."""

    def check_for_suspension(self, burst: bool) -> None:
        """Do nothing: rq's suspension applies to all applications that share the Redis."""

    def _set_ip_address(self, _connection: Redis) -> None:
        self.ip_address = "unknown"

    def get_redis_server_version(self) -> tuple[int, int, int]:
        """Return the oldest supported version instead of asking Redis."""
        return (6, 2, 0)

    # Jobs

    def run_maintenance_tasks(self) -> None:
        """Forget old entries of failed and started jobs."""
        for queue in self.queue_names():
            for key in (self.keys.failed(queue), self.keys.running(queue)):
                set_aside_unless(self.connection, self.keys, key, "zset")
                self.connection.zremrangebyscore(key, "-inf", time.time())
        self.last_cleaned_at = now()  # type: ignore[assignment]  # rq's own does so too

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job. Raises RedisError if its start or end cannot be recorded."""
        began = time.monotonic()
        try:
            self._run_recorded(cast(TableJob, job), queue)
        finally:
            self._order_queues(queue.name, began)

    def _order_queues(self, ran: str, began: float) -> None:
        """Let deliveries come first for as long as the last sweep took: long sweeps would leave no time for deliveries."""
        now = time.monotonic()
        if ran == EXPIRY:
            self._deliveries_first_until = now + (now - began)
        self._ordered_queues = list(self.queues)
        if now < self._deliveries_first_until:
            self._ordered_queues.sort(key=lambda each: each.name != DELIVERY)

    def _run_recorded(self, job: TableJob, queue: Queue) -> None:
        self._begin(job, queue.name)
        try:
            self._perform(job)
        except Exception as problem:  # noqa: BLE001 -- the edge of a job
            if not self.outage.report(problem):
                reason = f"{type(problem).__name__}: {problem}"
                logs.event(
                    logger, logging.ERROR, "job failed", job=job.id, reason=reason, exc_info=problem
                )
            self._end(job, queue.name, failed=True)
        else:
            self._end(job, queue.name, failed=False)

    def _perform(self, job: TableJob) -> None:
        self.performing.set()
        try:
            with self.death_penalty_class(job.kind.timeout, JobTimeoutException, job_id=job.id):
                job.perform()
        finally:
            self.performing.clear()

    def _begin(self, job: TableJob, queue: str) -> None:
        lasts = job.kind.timeout + 60
        with self.connection.pipeline() as pipeline:
            self.set_state(WorkerStatus.BUSY, pipeline=pipeline)
            pipeline.hset(self.key, "current_job", job.id)
            self.heartbeat(lasts, pipeline=pipeline)
            pipeline.zadd(self.keys.running(queue), {job.id: time.time() + lasts})
            # Kept until it is done, so that no second one gets the same id.
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
    """Return rq's worker class for an instance with this key prefix."""
    keys = QueueKeys(prefix)
    return type(
        "PrefixedWorker",
        (_Worker,),
        {
            "keys": keys,
            "redis_worker_namespace_prefix": keys.worker(""),
            "redis_workers_keys": keys.workers,
            "queue_class": queue_class(prefix),
            "job_class": job_class(prefix),
        },
    )


def run(settings: Settings, queues: Sequence[str] = QUEUES, *, concurrency: int = 1) -> int:
    """Run jobs until SIGTERM or SIGINT and return the exit code.

    concurrency: number of processes, each of which runs one job at a time. Raises EmbeddedRedisError.
    """
    ending.follow_parent()
    with redis_url(settings) as url:
        if concurrency > 1:
            return _supervise(settings, url, queues, concurrency)
        code = _work(settings, url, queues)
    stopping.exit_after(stopping.EXIT_SECONDS, code)
    return code


def _supervise(settings: Settings, url: str, queues: Sequence[str], concurrency: int) -> int:
    """Run jobs in several processes."""

    def work(_index: int) -> int:
        ending.follow(supervisor.parent.fileno())
        return _work(settings, url, queues)

    supervisor = Supervisor(concurrency, work, shutdown_timeout=_SHUTDOWN_TIMEOUT_SECONDS)
    return supervisor.run()


def _work(settings: Settings, url: str, queues: Sequence[str]) -> int:
    """Run jobs in this process, with its hooks started if it delivers events."""
    current.use(settings, url)
    if DELIVERY not in queues:
        return _run_jobs(settings, url, queues)
    try:
        with delivery_runner.running(current.instance()):
            return _run_jobs(settings, url, queues)
    except HookError as problem:
        logger.error("%s", problem)
        return 2


def _run_jobs(settings: Settings, url: str, queues: Sequence[str]) -> int:
    """Run jobs until a signal stops the process."""
    stop, performing = threading.Event(), threading.Event()
    stopping.set_on_signal(stop)
    logs.event(logger, logging.INFO, "working", queues=",".join(queues))
    outage = OutageLog(url, logger)
    logging.getLogger("rq.worker").addFilter(_OutageFilter(outage))

    def make() -> _Worker:
        worker = _make_worker(settings, url, queues, outage)
        worker.stop_event, worker.performing = stop, performing
        return worker

    with stopping.end_after_signal(_STOP_SECONDS, is_busy=performing.is_set, log=_log_stopped):
        _run_until_stopped(make, stop, outage)
    _log_stopped()
    return 0


def _run_until_stopped(
    make: Callable[[], _Worker], stop: threading.Event, outage: OutageLog
) -> None:
    """Run jobs until `stop` is set by a signal."""
    while not stop.is_set():
        try:
            if _was_stopped(make(), stop):
                break
        except RedisError as problem:
            outage.report(problem)
        stop.wait(_RETRY_PAUSE_SECONDS)


def _was_stopped(worker: _Worker, stop: threading.Event) -> bool:
    """Run jobs until a signal (True) or an error of Redis (False). Raises RedisError."""
    with suppress(StopRequested):
        try:
            worker.work(logging_level="WARNING")
        except StopRequested:
            worker.teardown()
        finally:
            # rq's handlers are bound to this worker: after an error they would raise in the pause, or stop nothing.
            if not worker.was_stopped:
                stopping.set_on_signal(stop)
    return worker.was_stopped


def _log_stopped() -> None:
    logs.event(logger, logging.INFO, "worker stopped")


def _make_worker(settings: Settings, url: str, queues: Sequence[str], outage: OutageLog) -> _Worker:
    connection = connect(url)
    legacy = LegacyJobs(connection, settings.redis_prefix)
    worker = _worker_class(settings.redis_prefix)(
        list(queues),
        connection=connection,
        worker_ttl=_HEARTBEAT_SECONDS,
        serializer=JSONSerializer,
    )

    # Not earlier: connections that are open keep their time-out, and rq sets a longer one.
    outage.refusals.check(connection, settings.redis_prefix)

    def queue_missing() -> None:
        if DELIVERY in queues:
            delivery_runner.current().queue_missing()

    def replace_legacy() -> None:
        try:
            legacy.replace_queued(queue_missing)
        except StorageError as problem:
            # They stay in the queue until the outbox can be read.
            logs.event(logger, logging.WARNING, "older jobs not replaced", reason=str(problem))

    worker.on_idle, worker.outage = replace_legacy, outage
    return worker
