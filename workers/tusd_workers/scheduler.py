"""When jobs run: the one place, beside `later.py`, that knows of rq-scheduler.

A job is scheduled once for each of its times, under an id that is made of that time, so any number of schedulers arrive at the
same jobs. It is looked at every few seconds whether the next ones are there: whatever takes them away (a Redis that was
emptied or restarted, a scheduler killed in the middle of a step), they are back at once. rq-scheduler's own repetitions are not
used: a job that is repeated under one id vanishes with its result, and its cron knows no time zone. Nor is its loop, which
does not outlive an outage of Redis.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import FrameType
from zoneinfo import ZoneInfo

from redis import Redis
from redis.exceptions import RedisError
from rq.job import Job
from rq_scheduler import Scheduler as RQScheduler

from tusd_py import logs
from tusd_py.settings.model import Settings
from tusd_py.state import Keys
from tusd_py.state.jobs import JobsReport
from tusd_workers import ending, expiry, jobs
from tusd_workers.connection import connect, redis_url
from tusd_workers.queues import EXPIRY, job_id, queue_name

logger = logging.getLogger(__name__)

DAILY_HOUR = 2
"""In the operator's time zone, when the whole storage is swept."""
_REPORT = 10
"""Seconds between reports for the servers' metrics."""
_REPORT_LASTS = 60
"""Seconds for which one is believed."""
_POLL = 2
"""Seconds between looks at what has to be put into a queue."""
_ALIVE = 30
"""Seconds after which a scheduler that said nothing is taken for dead."""
_JOB_TIMEOUT = 6 * 3600
"""Seconds that a sweep may take: those of a million uploads take minutes."""
_RESULT_TTL = 3600
"""Seconds for which rq remembers that a job was done."""
_FAILURE_TTL = 86_400
"""Seconds for which rq remembers that a job failed. A sweep does so only if its worker was killed, and the next one does its
work; rq's own year would be an alarm for as long."""
_SHORTEST_TTL = 60.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Something that is done again and again. next: the first time after a time, both in seconds since the epoch.

    lasts: seconds after which a job that nobody has begun is left out, as the next one does its work.
    """

    name: str
    queue: str
    job: Callable[[], None]
    next: Callable[[float], float]
    lasts: float


def schedules(settings: Settings) -> list[Schedule]:
    """What there is to be done at which times."""
    interval = max(1.0, settings.sweep_interval)

    def every_interval(name: str, job: Callable[[], None]) -> Schedule:
        lasts = max(_SHORTEST_TTL, 2 * interval)
        return Schedule(name, EXPIRY, job, lambda now: (now // interval + 1) * interval, lasts)

    theirs = [every_interval("sweep-tuspyservers", expiry.sweep_tuspyservers)]
    return [
        every_interval("sweep-due", expiry.sweep_due),
        *(theirs if settings.tuspyserver_dirs else []),
        Schedule(
            "sweep-all",
            EXPIRY,
            expiry.sweep_all,
            lambda now: next_daily(now, settings.time_zone),
            86_400.0,
        ),
    ]


def next_daily(now: float, time_zone: str, *, hour: int = DAILY_HOUR) -> float:
    """The first time after `now` (seconds since the epoch) at which it is `hour` o'clock in a time zone, "local" for ours.

    Where the clock jumps over that hour, the time that it would have been.
    """
    zone = None if time_zone == "local" else ZoneInfo(time_zone)
    here = datetime.fromtimestamp(now, UTC).astimezone(zone)
    day = here.date()
    while True:
        # astimezone(None) of a time without a zone takes it for local time.
        wall = datetime(day.year, day.month, day.day, hour, tzinfo=zone)
        moment = wall.timestamp()
        if moment > now:
            return moment
        day += timedelta(days=1)


class _RQScheduler(RQScheduler):  # type: ignore[misc]  # it has no types
    """rq-scheduler's, whose jobs do not count as failed for a year."""

    def _create_job(self, *args: object, commit: bool = True, **kwargs: object) -> Job:
        job: Job = super()._create_job(*args, commit=False, **kwargs)
        job.failure_ttl = _FAILURE_TTL
        if commit:
            job.save()
        return job


class Scheduler:
    """Puts jobs into queues at their times. clock: seconds since the epoch, for what comes next."""

    def __init__(
        self,
        connection: Redis,
        schedules: list[Schedule],
        *,
        prefix: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rq = _RQScheduler(connection=connection, interval=_POLL)
        self._connection = connection
        self._schedules = schedules
        self._prefix = prefix
        self._clock = clock

    def poll(self) -> None:
        """Sees that the next job of each schedule is there, and puts into queues what is due. Raises RedisError."""
        self._connection.set(Keys(self._prefix).scheduler(), self._clock(), ex=_ALIVE)
        for schedule in self._schedules:
            self._ensure(schedule)
        # Another scheduler that is at it does the same.
        if self._rq.acquire_lock():
            try:
                self._rq.enqueue_jobs()
            finally:
                self._rq.remove_lock()

    def report(self) -> None:
        """Tells servers what there is to know about jobs. Raises RedisError."""
        workers = jobs.workers(self._connection, self._prefix)
        report = JobsReport(
            at=time.time(),
            queues=jobs.queues(self._connection, self._prefix),
            workers=len(workers),
            busy=sum(1 for worker in workers if worker.state == "busy"),
            schedule=self.upcoming(),
        )
        self._connection.set(Keys(self._prefix).jobs(), report.to_json(), ex=_REPORT_LASTS)

    def _ensure(self, schedule: Schedule) -> None:
        when = schedule.next(self._clock())
        identity = job_id(self._prefix, schedule.name, round(when))
        # One that is on its way already is known as a job, though no longer as one to come.
        if identity in self._rq or Job.exists(identity, connection=self._connection):
            return
        self._rq.enqueue_at(
            # rq-scheduler wants times in UTC without saying so.
            datetime.fromtimestamp(when, UTC).replace(tzinfo=None),
            schedule.job,
            job_id=identity,
            queue_name=queue_name(self._prefix, schedule.queue),
            timeout=_JOB_TIMEOUT,
            job_result_ttl=_RESULT_TTL,
            job_ttl=round(schedule.lasts),
        )

    def upcoming(self) -> dict[str, float]:
        """When each schedule's next job is due, as Redis has it. Raises RedisError."""
        found: dict[str, float] = {}
        for schedule in self._schedules:
            identity = job_id(self._prefix, schedule.name, round(schedule.next(self._clock())))
            score = self._connection.zscore(self._rq.scheduled_jobs_key, identity)
            if score is not None:
                found[schedule.name] = score
        return found


def run(settings: Settings) -> int:
    """Schedules until SIGTERM or SIGINT; returns the exit code. Raises EmbeddedStateError."""
    told = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    ending.follow_parent()
    with redis_url(settings) as url:
        scheduler = Scheduler(connect(url), schedules(settings), prefix=settings.redis_prefix)
        logs.event(logger, logging.INFO, "scheduling", time_zone=settings.time_zone)
        away = False
        report_at = 0.0
        while not told.is_set():
            try:
                scheduler.poll()
                if time.monotonic() >= report_at:
                    scheduler.report()
                    report_at = time.monotonic() + _REPORT
            except RedisError as problem:
                if not away:
                    logs.event(logger, logging.WARNING, "redis away", reason=type(problem).__name__)
                away = True
            else:
                if away:
                    logs.event(logger, logging.WARNING, "redis back")
                away = False
            told.wait(_POLL)
    logs.event(logger, logging.INFO, "scheduler stopped")
    return 0
