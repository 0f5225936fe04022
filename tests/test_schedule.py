"""The schedule means what cron means, and stops cleanly."""

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from fraudlib.errors import ParameterError
from pipelines.schedule import Job, cron_days, trigger

WEEK = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def next_run(cron: str, timezone: str = "UTC") -> datetime | None:
    """First run after Thursday, 1 January 2026, noon UTC."""
    return trigger(cron, timezone).get_next_fire_time(None, datetime(2026, 1, 1, 12, tzinfo=ZoneInfo("UTC")))


def test_one_is_monday() -> None:
    """Cron counts days from Sunday, APScheduler from Monday: "1" must run on a Monday."""
    assert str(next_run("0 3 * * 1")) == "2026-01-05 03:00:00+00:00"


@pytest.mark.parametrize(
    ("field", "days"),
    [
        ("0", "sun"),
        ("7", "sun"),
        ("1-5", "mon,tue,wed,thu,fri"),
        ("5-7", "fri,sat,sun"),
        ("mon-wed", "mon,tue,wed"),
        ("0,6", "sun,sat"),
        ("*/2", "sun,tue,thu,sat"),
        ("fri-mon", "fri,sat,sun,mon"),
        ("*", "*"),
    ],
)
def test_days_of_the_week(field: str, days: str) -> None:
    """Numbers, names, ranges, lists and steps are read as cron reads them."""
    assert cron_days(field) == days


def test_the_time_zone_counts() -> None:
    """Three in Vienna is two in UTC in winter."""
    assert str(next_run("0 3 * * *", "Europe/Vienna")) == "2026-01-02 03:00:00+01:00"


@pytest.mark.parametrize(
    ("cron", "timezone"),
    [
        ("0 3 * *", "UTC"),
        ("61 3 * * *", "UTC"),
        ("0 3 * * 8", "UTC"),
        ("0 3 1 * 1", "UTC"),
        ("0 3 * * 1", "Mars/Phobos"),
    ],
)
def test_what_is_not_understood_is_refused(cron: str, timezone: str) -> None:
    """A wrong expression or zone is an error at start, not a run that never comes."""
    with pytest.raises(ParameterError, match="expected"):
        trigger(cron, timezone)


def test_stopping_the_job_stops_its_process() -> None:
    """What the schedule started is gone when it stops."""
    job = Job([sys.executable, "-c", "import time; time.sleep(60)"], trigger("0 3 * * 1", "UTC"))
    thread = threading.Thread(target=job.run)
    thread.start()
    while job._process is None:
        time.sleep(0.01)
    job.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_the_outcome_of_a_run_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """What the run came to and when the next one is due; a run that said nothing does not end the schedule."""
    line = json.dumps({"run_id": "r1", "promoted": True, "reason": "AP 0.50"})
    with caplog.at_level(logging.INFO):
        Job([sys.executable, "-c", f"print({line!r})"], trigger("0 3 * * 1", "UTC")).run()
        Job([sys.executable, "-c", "exit(3)"], trigger("0 3 * * 1", "UTC")).run()
    assert "run r1 ended with exit code 0, promoted True: AP 0.50" in caplog.text
    assert "run None ended with exit code 3, promoted False: see above" in caplog.text
    assert caplog.text.count("next run at") == 2


def schedule(notebooks: Path, *more: str) -> subprocess.Popen[str]:
    """A schedule on the small notebooks, in a process of its own."""
    command = [sys.executable, "-m", "pipelines", "schedule", "--cron", "0 3 * * 1", "--notebooks", str(notebooks)]
    return subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True)


def test_a_wrong_parameter_is_refused_at_start(notebooks: Path) -> None:
    """A misspelt parameter is not found out on Monday at three."""
    with schedule(notebooks, "-p", "sed=1") as process:
        assert "unknown parameter sed" in process.communicate(timeout=30)[1]
    assert process.returncode == 2


def test_sigterm_ends_the_schedule_cleanly(notebooks: Path) -> None:
    """It says when the next run is due, and exits 0 on SIGTERM."""
    with schedule(notebooks) as process:
        try:
            assert process.stderr
            assert "next run at" in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()
