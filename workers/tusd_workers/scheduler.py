"""When jobs run.

A job is scheduled once for each of its times, under an id that is made of that time, so any number of schedulers arrive at the
same jobs. It is looked at every few seconds whether the next ones are there: whatever takes them away (a Redis that was
emptied or restarted, a scheduler killed in the middle of a step), they are back at once. rq-scheduler's own repetitions are not
used: a job that is repeated under one id vanishes with its result, and its cron knows no time zone. Nor is its loop, which
does not outlive an outage of Redis. What others keep in the same Redis is neither read nor touched.
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

from tusd_py import logs
from tusd_py.jobs import inspection as jobs
from tusd_py.jobs import table as job_table
from tusd_py.jobs.connection import Refusals, connect, redis_url
from tusd_py.jobs.delayed import PutOff
from tusd_py.jobs.legacy import LegacyJobs
from tusd_py.jobs.queues import EXPIRY, QueueKeys, job_id
from tusd_py.jobs.status import JobsReport
from tusd_py.process import parent as ending
from tusd_py.redis import Keys
from tusd_py.settings.model import Settings

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
_SHORTEST_TTL = 60.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Something that is done again and again. next: the first time after a time, both in seconds since the epoch.

    job: its name in `job_table`. lasts: seconds after which a job that nobody has begun is left out, as the next one does its
    work.
    """

    name: str
    queue: str
    job: str
    next: Callable[[float], float]
    lasts: float


def schedules(settings: Settings) -> list[Schedule]:
    """What there is to be done at which times."""
    interval = max(1.0, settings.sweep_interval)

    def every_interval(job: str) -> Schedule:
        lasts = max(_SHORTEST_TTL, 2 * interval)
        return Schedule(job, EXPIRY, job, lambda now: (now // interval + 1) * interval, lasts)

    theirs = [every_interval(job_table.SWEEP_TUSPYSERVERS)]
    return [
        every_interval(job_table.SWEEP_DUE),
        *(theirs if settings.tuspyserver_dirs else []),
        Schedule(
            job_table.SWEEP_ALL,
            EXPIRY,
            job_table.SWEEP_ALL,
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
        self._put_off = PutOff(connection, prefix)
        self._keys = QueueKeys(prefix)
        self._connection = connection
        self._schedules = schedules
        self._prefix = prefix
        self._clock = clock

    def check_permissions(self, refusals: Refusals) -> None:
        """Log what the Redis user lacks. Raises RedisError."""
        refusals.check(self._connection, self._prefix)

    def poll(self) -> None:
        """Sees that the next job of each schedule is there, and puts into queues what is due. Raises RedisError."""
        self._connection.set(Keys(self._prefix).scheduler(), self._clock(), ex=_ALIVE)
        for schedule in self._schedules:
            self._ensure(schedule)
        self._put_off.enqueue_due(time.time())

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
        identity = job_id(schedule.name, round(when))
        # One that is on its way already is known as a job, though no longer as one to come.
        if self._put_off.time_of(identity) is not None:
            return
        if self._connection.exists(self._keys.job(identity)):
            return
        self._put_off.add(
            when,
            schedule.job,
            job_id=identity,
            queue=schedule.queue,
            ttl=round(schedule.lasts),
        )

    def upcoming(self) -> dict[str, float]:
        """When each schedule's next job is due, as Redis has it. Raises RedisError."""
        found: dict[str, float] = {}
        for schedule in self._schedules:
            identity = job_id(schedule.name, round(schedule.next(self._clock())))
            when = self._put_off.time_of(identity)
            if when is not None:
                found[schedule.name] = when
        return found


class _Troubles:
    """Logs once that something is wrong with Redis, and once that it works again."""

    def __init__(self, url: str) -> None:
        self.refusals = Refusals(url)
        self._is_away = False

    def begin(self, problem: RedisError) -> None:
        """A command failed."""
        if self.refusals.report(problem):
            return
        if not self._is_away:
            logs.event(logger, logging.WARNING, "redis away", reason=type(problem).__name__)
        self._is_away = True

    def end(self) -> None:
        """All commands worked."""
        if self._is_away:
            logs.event(logger, logging.WARNING, "redis back")
        self._is_away = False


def run(settings: Settings) -> int:
    """Schedules until SIGTERM or SIGINT; returns the exit code. Raises EmbeddedStateError."""
    told = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    ending.follow_parent()
    with redis_url(settings) as url:
        connection = connect(url)
        scheduler = Scheduler(connection, schedules(settings), prefix=settings.redis_prefix)
        legacy = LegacyJobs(connection, settings.redis_prefix)
        logs.event(logger, logging.INFO, "scheduling", time_zone=settings.time_zone)
        _schedule(scheduler, legacy, _Troubles(url), told)
    logs.event(logger, logging.INFO, "scheduler stopped")
    return 0


def _schedule(
    scheduler: Scheduler, legacy: LegacyJobs, troubles: _Troubles, told: threading.Event
) -> None:
    report_at = 0.0
    is_checked = False
    while not told.is_set():
        try:
            if not is_checked:
                scheduler.check_permissions(troubles.refusals)
                is_checked = True
            scheduler.poll()
            if time.monotonic() >= report_at:
                legacy.remove_put_off()
                scheduler.report()
                report_at = time.monotonic() + _REPORT
        except RedisError as problem:
            troubles.begin(problem)
        except Exception as problem:  # noqa: BLE001 -- the edge of a job; without it nothing would be scheduled ever again
            logs.event(logger, logging.ERROR, "scheduling failed", exc_info=problem)
            told.wait(_REPORT)
        else:
            troubles.end()
        told.wait(_POLL)
