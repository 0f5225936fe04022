"""Retraining by the clock: APScheduler in this process, each run a process of its own."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.cron import CronTrigger
from prometheus_client import CollectorRegistry, start_http_server

from fraudlib.errors import BundleError, ParameterError, ServiceError
from fraudlib.manifest import current_bundle, read_manifest
from fraudlib.settings import Settings
from fraudlib.telemetry import RetrainMetrics

# A run that could not start on time, say since the machine slept, still starts within the hour.
MISFIRE_SECONDS: Final = 3600
EXIT_BUSY: Final = 3
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
log = logging.getLogger(__name__)


def cron_days(field: str) -> str:
    """Day-of-week field of a crontab by names: cron counts from Sunday, APScheduler 3 from Monday.

    Examples
    --------
    >>> cron_days("1"), cron_days("5-7"), cron_days("*/3"), cron_days("sat"), cron_days("*")
    ('mon', 'fri,sat,sun', 'sun,wed,sat', 'sat', '*')
    """
    if field == "*":
        return field
    days: list[str] = []
    for part in field.lower().split(","):
        span, _, step = part.partition("/")
        first, dash, last = ("0", "-", "6") if span == "*" else span.partition("-")
        start = _day(first)
        end = _day(last) if dash else 6 if step else start
        days += [_DAYS[day % 7] for day in range(start, end + 1 if end >= start else end + 8, int(step or 1))]
    return ",".join(dict.fromkeys(days))


def _day(text: str) -> int:
    number = _DAYS.index(text) if text in _DAYS else int(text)
    if not 0 <= number <= 7:
        raise ValueError(f"day of week {text}")
    return number


def trigger(cron: str, timezone: str) -> CronTrigger:
    """When to run: a crontab expression of five fields in a time zone.

    Raises
    ------
    ParameterError
        If either is not understood.
    """
    try:
        minute, hour, day, month, weekday = cron.split()
        if day != "*" and weekday != "*":
            raise ValueError("give a day of the month or a day of the week, not both")
        zone = ZoneInfo(timezone)
        return CronTrigger(
            minute=minute, hour=hour, day=day, month=month, day_of_week=cron_days(weekday), timezone=zone
        )
    except ZoneInfoNotFoundError as err:
        raise ParameterError(f"unknown time zone {timezone!r}; expected a name like Europe/Vienna") from err
    except ValueError as err:
        raise ParameterError(f'expected a cron expression like "0 3 * * 1", found {cron!r} ({err})') from err


class Job:
    """One command, run in a process that can be stopped with the scheduler.

    Parameters
    ----------
    metrics : what the runs come to; of a registry of its own by default.
    """

    def __init__(self, command: Sequence[str], when: CronTrigger, metrics: RetrainMetrics | None = None) -> None:
        self._command, self._when = list(command), when
        self._metrics = metrics or RetrainMetrics(CollectorRegistry())
        self._process: subprocess.Popen[str] | None = None

    def announce(self) -> None:
        """Log and show when the next run is due."""
        due = self._when.get_next_fire_time(None, datetime.now(self._when.timezone))
        self._metrics.next_run.set(due.timestamp() if due else float("nan"))
        log.info("next run at %s", due)

    def run(self) -> None:
        """Run the command to its end and log its outcome; a failed run does not end the schedule."""
        started = time.monotonic()
        with self._metrics.running.track_inprogress():
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
            lines = self._process.communicate()[0].splitlines()
        outcome = json.loads(lines[-1]) if lines else {}
        code = self._process.returncode
        said = "promoted" if outcome.get("promoted") else {0: "refused", EXIT_BUSY: "busy"}.get(code, "failed")
        self._metrics.ended(said, time.monotonic() - started, time.time())
        log.info(
            "run %s ended with exit code %d, promoted %s: %s",
            outcome.get("run_id"),
            code,
            outcome.get("promoted", False),
            outcome.get("reason", "see above"),
        )
        self.announce()

    def stop(self) -> None:
        """Stop the command, if it runs, and wait until it is gone."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def created(artifacts: Path) -> float:
    """When the current bundle was sealed, in seconds since the epoch; NaN where there is none."""
    try:
        folder = current_bundle(artifacts)
        return datetime.fromisoformat(read_manifest(folder).created_at).timestamp() if folder else float("nan")
    except (BundleError, OSError):
        return float("nan")


def expose(settings: Settings, artifacts: Path) -> RetrainMetrics:
    """Serve the schedule's metrics beside it.

    Raises
    ------
    ServiceError
        If the port is taken.
    """
    metrics = RetrainMetrics(CollectorRegistry())
    metrics.model_created.set_function(lambda: created(artifacts))
    host, port = settings.metrics_host, settings.schedule_metrics_port
    try:
        start_http_server(port, host, metrics.registry)
    except OSError as err:
        raise ServiceError(
            f"cannot listen on {host}:{port} ({err.strerror}); free the port or set FRAUDLIB_SCHEDULE_METRICS_PORT"
        ) from err
    return metrics


def serve(when: CronTrigger, arguments: Sequence[str], settings: Settings, artifacts: Path) -> None:
    """Run `python -m pipelines retrain` with `arguments` at every `when`, until interrupted; metrics are served."""
    scheduler = BlockingScheduler(timezone=when.timezone)
    job = Job([sys.executable, "-m", "pipelines", "retrain", *arguments], when, expose(settings, artifacts))
    scheduler.add_job(job.run, when, coalesce=True, max_instances=1, misfire_grace_time=MISFIRE_SECONDS)
    job.announce()
    try:
        scheduler.start()
    finally:
        job.stop()
        if scheduler.running:
            scheduler.shutdown()
