"""Retraining by the clock, and early for drift: APScheduler in this process, each run a process of its own."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.cron import CronTrigger
from prometheus_client import CollectorRegistry, start_http_server

from fraudlib import manifest
from fraudlib.errors import BundleError, FraudError, ParameterError, ServiceError
from fraudlib.settings import Settings
from fraudlib.telemetry import RetrainMetrics
from pipelines import drift

# A run that could not start on time, say since the machine slept, still starts within the hour.
MISFIRE_SECONDS: Final = 3600
LOOK_SECONDS: Final = 60.0  # between looks at the drift, at most
EXIT_BUSY, EXIT_INTERRUPTED = 3, 130  # of the command line
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
    """One command, run in a process that can be stopped with the scheduler; never twice at once.

    Parameters
    ----------
    command : its last line on stdout is the JSON line of a retraining.
    when : its clock. metrics : get every outcome.
    """

    def __init__(self, command: Sequence[str], when: CronTrigger, metrics: RetrainMetrics | None = None) -> None:
        self._command, self._when = list(command), when
        self._metrics = metrics or RetrainMetrics(CollectorRegistry())
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()
        self._is_stopped = False

    def announce(self) -> None:
        """Log when the next run is due."""
        due = self._when.get_next_fire_time(None, datetime.now(self._when.timezone))
        self._metrics.next_run.set(due.timestamp() if due else float("nan"))
        log.info("next run at %s", due)

    def run(self, cause: str = "clock") -> bool:
        """Run the command to its end and log its outcome; a failed run does not end the schedule.

        Returns
        -------
        bool : False where another run was at work, so that this one was left out.
        """
        if not self._turn.acquire(blocking=False):
            log.info("a run for the %s is left out: another one is at work", cause)
            return False
        start = time.monotonic()
        try:
            with self._metrics.running.track_inprogress():
                code, outcome = self._wait()
            self._end(time.monotonic() - start, code, outcome)
        finally:
            self._turn.release()
        self.announce()
        return True

    def _wait(self) -> tuple[int, dict[str, Any]]:
        """Exit code and JSON line of the command."""
        if self._is_stopped:
            return EXIT_INTERRUPTED, {}
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        lines = self._process.communicate()[0].splitlines()
        try:
            outcome = json.loads(lines[-1]) if lines else {}
        except ValueError:
            outcome = {}
        return self._process.returncode, outcome if isinstance(outcome, dict) else {}

    def _end(self, seconds: float, code: int, outcome: dict[str, Any]) -> None:
        decided = {"promote": "promoted", "shadow": "shadowed"}.get(str(outcome.get("decision")), "refused")
        said = "promoted" if outcome.get("promoted") else {0: decided, EXIT_BUSY: "busy"}.get(code, "failed")
        self._metrics.ended(said, seconds, time.time())
        for name, months in (outcome.get("fetches") or {}).items():
            self._metrics.fetches.labels(name).inc(months)
        log.info(
            "run %s ended with exit code %d, %s: %s",
            outcome.get("run_id"),
            code,
            said,
            outcome.get("reason", "see above"),
        )

    def stop(self) -> None:
        """Stop the command, if it runs, and wait until it is gone."""
        self._is_stopped = True
        if self._process and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


class Watch:
    """Looks at the workers' drift and runs the job early where it stays too high.

    Parameters
    ----------
    urls : as of `drift.read`. hold : decides.
    """

    def __init__(self, job: Job, urls: Sequence[str], hold: drift.Hold, metrics: RetrainMetrics) -> None:
        self._job, self._urls, self._hold, self._metrics = job, urls, hold, metrics
        self._was_readable = True

    def look(self) -> None:
        """Read once; an address that does not answer is logged once, counted, and nothing is retrained for it."""
        try:
            value = drift.read(self._urls)
        except FraudError as err:
            value = float("nan")
            if self._was_readable:
                log.warning("%s", err)
            self._was_readable = False
            self._metrics.drift_reads.labels("failed").inc()
        else:
            self._was_readable = True
            self._metrics.drift_reads.labels("read").inc()
        self._metrics.drift.set(value)
        if self._hold.add(value):
            log.info("drift of the scores stays at %.2f: retraining before its time", value)
            if self._job.run("drift"):
                self._metrics.early_runs.inc()
                self._hold.answered()


def created(artifacts: Path) -> float:
    """When the current bundle was sealed, in seconds since the epoch; NaN where there is none."""
    try:
        folder = manifest.current_bundle(artifacts)
        return datetime.fromisoformat(manifest.read_manifest(folder).created_at).timestamp() if folder else float("nan")
    except (BundleError, OSError):
        return float("nan")


def last_success(runs: Path) -> float:
    """When a run of the folder last went through, in seconds since the epoch; NaN where none did."""
    ended = []
    for path in runs.glob("*/status.json"):
        try:
            status = json.loads(path.read_bytes())
            if status["state"] == "done":
                ended.append(datetime.fromisoformat(status["at"]).timestamp())
        except (OSError, ValueError, LookupError, TypeError) as err:
            log.warning("%s is not the status of a run (%s)", path, err)
    return max(ended, default=float("nan"))


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


def serve(when: CronTrigger, arguments: Sequence[str], settings: Settings, artifacts: Path, runs: Path) -> None:
    """Run `python -m pipelines retrain` with `arguments` at every `when`, and early for drift, until interrupted."""
    urls = drift.addresses(settings.drift_urls)
    metrics = expose(settings, artifacts)
    metrics.last_success.set(last_success(runs))
    scheduler = BlockingScheduler(timezone=when.timezone)
    job = Job([sys.executable, "-m", "pipelines", "retrain", *arguments], when, metrics)
    scheduler.add_job(job.run, when, coalesce=True, max_instances=1, misfire_grace_time=MISFIRE_SECONDS)
    if urls:
        hold = drift.Hold(settings.drift_bound, settings.drift_hold_seconds, 3600 * settings.drift_pause_hours)
        seconds = min(LOOK_SECONDS, max(1.0, settings.drift_hold_seconds / 4))
        watch = Watch(job, urls, hold, metrics)
        scheduler.add_job(watch.look, "interval", seconds=seconds, coalesce=True, max_instances=1)
    job.announce()
    try:
        scheduler.start()
    finally:
        job.stop()
        if scheduler.running:
            scheduler.shutdown()
