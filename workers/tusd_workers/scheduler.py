"""The scheduler: queues periodic jobs at their times.

Each run of a job has an id made from its time, so that any number of schedulers create the same jobs. Every few seconds the
next ones are checked and created again if they are missing (Redis was emptied or restarted, or a scheduler was killed).
rq-scheduler's own repetition is not used: a job repeated under one id vanishes with its result, and its cron has no time
zones. Nor is its loop, which does not survive an outage of Redis. Keys of other applications are neither read nor changed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from redis import Redis
from redis.exceptions import RedisError

from tusd_py import logs
from tusd_py.jobs import inspection as jobs
from tusd_py.jobs import table as job_table
from tusd_py.jobs.connection import OutageLog, Refusals, connect, redis_url
from tusd_py.jobs.delayed import DelayedJobs
from tusd_py.jobs.legacy import LegacyJobs
from tusd_py.jobs.queues import EXPIRY, QueueKeys, job_id
from tusd_py.jobs.status import JobsReport
from tusd_py.process import parent as ending
from tusd_py.process import stopping
from tusd_py.redis import Keys
from tusd_py.settings.model import Settings

logger = logging.getLogger(__name__)

DAILY_HOUR = 2
"""Hour of the sweep of the whole storage, in the operator's time zone."""
_REPORT_SECONDS = 10
"""Interval of reports for the servers' metrics."""
_REPORT_TTL_SECONDS = 60
_POLL_SECONDS = 2
"""Interval of checks for jobs that are due."""
_STOP_SECONDS = 10.0
"""Time to end after SIGTERM, whatever Redis or the lookup of its name takes."""
_HEARTBEAT_TTL_SECONDS = 30
"""Age at which the last sign of life of a scheduler is forgotten."""
_MIN_TTL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """A periodic job.

    job: its name in `tusd_py.jobs.table`.
    next: returns the first run after a time, both in seconds since the epoch.
    lasts: seconds after which a run that has not started is skipped, as the next one does its work.
    """

    job: str
    next: Callable[[float], float]
    lasts: float

    def next_id(self, now: float) -> tuple[float, str]:
        """Return the time of the first run after `now`, and its job id, the same in every scheduler."""
        when = self.next(now)
        return when, job_id(self.job, round(when))


def schedules(settings: Settings) -> list[Schedule]:
    """Return the periodic jobs of an instance."""
    interval = max(1.0, settings.sweep_interval)
    lasts = max(_MIN_TTL_SECONDS, 2 * interval)
    theirs = [job_table.SWEEP_TUSPYSERVERS] if settings.tuspyserver_dirs else []
    return [
        *(
            Schedule(job, lambda now: (now // interval + 1) * interval, lasts)
            for job in (job_table.SWEEP_DUE, *theirs)
        ),
        Schedule(job_table.SWEEP_ALL, lambda now: next_daily(now, settings.time_zone), 86_400.0),
    ]


def next_daily(now: float, time_zone: str) -> float:
    """Return the first time after `now` at which it is `DAILY_HOUR` in a time zone, both in seconds since the epoch.

    time_zone: a name, or "local" for that of this machine. Where the clock skips that hour, the time at which it would be.
    """
    zone = None if time_zone == "local" else ZoneInfo(time_zone)
    here = datetime.fromtimestamp(now, UTC).astimezone(zone)
    day = here.date()
    while True:
        # astimezone(None) of a time without a zone takes it for local time.
        wall = datetime(day.year, day.month, day.day, DAILY_HOUR, tzinfo=zone)
        moment = wall.timestamp()
        if moment > now:
            return moment
        day += timedelta(days=1)


class Scheduler:
    """Queues jobs at their times. clock: returns seconds since the epoch."""

    def __init__(
        self,
        connection: Redis,
        schedules: list[Schedule],
        *,
        prefix: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._delayed = DelayedJobs(connection, prefix)
        self._keys = QueueKeys(prefix)
        self._connection = connection
        self._schedules = schedules
        self._prefix = prefix
        self._clock = clock

    def check_permissions(self, refusals: Refusals) -> None:
        """Log the commands that the Redis user may not run. Raises RedisError."""
        refusals.check(self._connection, self._prefix)

    def poll(self) -> None:
        """Create the next job of each schedule if it is missing, and queue the jobs that are due. Raises RedisError."""
        self._connection.set(Keys(self._prefix).scheduler, self._clock(), ex=_HEARTBEAT_TTL_SECONDS)
        for schedule in self._schedules:
            self._ensure(schedule)
        self._delayed.enqueue_due(time.time())

    def report(self) -> None:
        """Publish the state of queues and workers for the servers' metrics. Raises RedisError."""
        workers = jobs.workers(self._connection, self._prefix)
        report = JobsReport(
            at=time.time(),
            queues=jobs.queues(self._connection, self._prefix),
            workers=len(workers),
            busy=sum(1 for worker in workers if worker.state == "busy"),
            schedule=self.upcoming(),
        )
        self._connection.set(Keys(self._prefix).jobs, report.to_json(), ex=_REPORT_TTL_SECONDS)

    def _ensure(self, schedule: Schedule) -> None:
        when, identity = schedule.next_id(self._clock())
        # A job that was queued already is no longer among the delayed ones.
        if self._delayed.time_of(identity) is not None:
            return
        if self._connection.exists(self._keys.job(identity)):
            return
        self._delayed.add(
            when,
            schedule.job,
            job_id=identity,
            queue=EXPIRY,
            ttl=round(schedule.lasts),
        )

    def upcoming(self) -> dict[str, float]:
        """Return when the next job of each schedule is due, according to Redis. Raises RedisError."""
        found: dict[str, float] = {}
        for schedule in self._schedules:
            when = self._delayed.time_of(schedule.next_id(self._clock())[1])
            if when is not None:
                found[schedule.job] = when
        return found


def run(settings: Settings) -> int:
    """Schedule until SIGTERM or SIGINT and return the exit code. Raises EmbeddedRedisError."""
    stop = threading.Event()
    stopping.set_on_signal(stop)
    ending.follow_parent()
    with redis_url(settings) as url:
        connection = connect(url)
        scheduler = Scheduler(connection, schedules(settings), prefix=settings.redis_prefix)
        legacy = LegacyJobs(connection, settings.redis_prefix)
        logs.event(logger, logging.INFO, "scheduling", time_zone=settings.time_zone)
        for directory in settings.tuspyserver_dirs:
            if not directory.is_dir():
                message = f"{directory} is no directory (--tuspyserver-dirs)"
                logs.event(logger, logging.WARNING, "nothing to sweep", message=message)
        with stopping.end_after_signal(_STOP_SECONDS, is_busy=lambda: False, log=_log_stopped):
            _schedule(scheduler, legacy, OutageLog(url, logger), stop)
    _log_stopped()
    return 0


def _log_stopped() -> None:
    logs.event(logger, logging.INFO, "scheduler stopped")


def _schedule(
    scheduler: Scheduler, legacy: LegacyJobs, outage_log: OutageLog, stop: threading.Event
) -> None:
    report_at = 0.0
    is_checked = False
    while not stop.is_set():
        try:
            if not is_checked:
                scheduler.check_permissions(outage_log.refusals)
                is_checked = True
            scheduler.poll()
            if time.monotonic() >= report_at:
                legacy.remove_delayed()
                scheduler.report()
                report_at = time.monotonic() + _REPORT_SECONDS
        except RedisError as problem:
            outage_log.report(problem)
        except Exception as problem:  # noqa: BLE001 -- the scheduler must go on
            logs.event(logger, logging.ERROR, "scheduling failed", exc_info=problem)
            stop.wait(_REPORT_SECONDS)
        else:
            outage_log.end()
        stop.wait(_POLL_SECONDS)
