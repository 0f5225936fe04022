"""The schedule means what cron means, and stops cleanly."""

import json
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from prometheus_client import CollectorRegistry

from fraudlib import paths
from fraudlib.errors import ParameterError, ServiceError
from fraudlib.settings import Settings
from fraudlib.telemetry import RetrainMetrics
from pipelines.schedule import Job, created, cron_days, expose, trigger

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


@pytest.mark.parametrize(
    ("says", "code", "outcome", "result"),
    [
        ({"promoted": True}, 0, "promoted", 1),
        ({"promoted": False}, 0, "refused", 1),
        ({"run_id": "r1"}, 1, "failed", 0),
        (None, 1, "failed", 0),
        (None, 3, "busy", None),
    ],
)
def test_what_a_run_came_to_is_shown(says: object, code: int, outcome: str, result: float | None) -> None:
    """A refusal by the gate is a run that went through; another run under way says nothing about the last one."""
    metrics = RetrainMetrics(CollectorRegistry())
    printed = f"print({json.dumps(says)!r})" if says else "0"
    command = [sys.executable, "-c", f"{printed}; exit({code})"]
    Job(command, trigger("0 3 * * 1", "UTC"), metrics).run()

    def value(name: str, **labels: str) -> float:
        return metrics.registry.get_sample_value(f"fraudlib_retrain_{name}", labels) or 0.0

    assert value("runs_total", outcome=outcome) == 1
    assert sum(value("runs_total", outcome=name) for name in ("promoted", "refused", "failed", "busy")) == 1
    assert value("running") == 0
    assert value("next_run_timestamp_seconds") > time.time()
    if result is None:
        assert math.isnan(value("last_result"))
    else:
        assert value("last_result") == result
        assert value("last_duration_seconds") > 0
        assert (abs(value("last_success_timestamp_seconds") - time.time()) < 60) == bool(result)


def test_the_schedule_serves_its_metrics(tmp_path: Path) -> None:
    """With the age of the current bundle, NaN where there is none; a taken port is refused with its setting."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = Settings(schedule_metrics_port=port)
    expose(settings, paths.root() / "artifacts")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    shown = re.search(r"^fraudlib_retrain_model_created_timestamp_seconds (\S+)$", text, re.MULTILINE)
    assert shown
    assert float(shown[1]) > 1_700_000_000
    assert math.isnan(created(tmp_path))
    with pytest.raises(ServiceError, match="FRAUDLIB_SCHEDULE_METRICS_PORT"):
        expose(settings, tmp_path)


def schedule(notebooks: Path, *more: str) -> subprocess.Popen[str]:
    """A schedule on the small notebooks, in a process of its own."""
    env = {**os.environ, "FRAUDLIB_SCHEDULE_METRICS_PORT": "0"}
    command = [sys.executable, "-m", "pipelines", "schedule", "--cron", "0 3 * * 1", "--notebooks", str(notebooks)]
    return subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True, env=env)


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
