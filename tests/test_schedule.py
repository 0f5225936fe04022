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
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fraudlib import paths
from fraudlib.errors import ParameterError, ServiceError
from fraudlib.settings import Settings
from fraudlib.telemetry import RetrainMetrics, WorkerMetrics
from pipelines import drift
from pipelines.schedule import Job, Watch, created, cron_days, expose, last_success, trigger

WEEKLY = trigger("0 3 * * 1", "UTC")


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


@pytest.fixture
def metrics() -> RetrainMetrics:
    """Metrics of a schedule."""
    return RetrainMetrics(CollectorRegistry())


def value(metrics: RetrainMetrics, name: str, **labels: str) -> float | None:
    """A metric of the schedule as Prometheus would read it."""
    return metrics.registry.get_sample_value(f"fraudlib_retrain_{name}", labels)


def test_stopping_the_job_stops_its_process(metrics: RetrainMetrics) -> None:
    """What the schedule started is gone when it stops, and nothing is started any more."""
    job = Job([sys.executable, "-c", "import time; time.sleep(60)"], WEEKLY, metrics)
    thread = threading.Thread(target=job.run)
    thread.start()
    while job._process is None:
        time.sleep(0.01)
    job.stop()
    thread.join(10)
    assert not thread.is_alive()
    job.run()
    assert value(metrics, "runs_total", outcome="failed") == 2


def test_runs_do_not_overlap(metrics: RetrainMetrics) -> None:
    """A run for drift is left out while one by the clock is at work."""
    job = Job([sys.executable, "-c", "import time; time.sleep(60)"], WEEKLY, metrics)
    thread = threading.Thread(target=job.run)
    thread.start()
    while job._process is None:
        time.sleep(0.01)
    assert (job.run("drift"), value(metrics, "running")) == (False, 1)
    job.stop()
    thread.join(10)
    assert value(metrics, "running") == 0


def test_the_outcome_of_a_run_is_logged(caplog: pytest.LogCaptureFixture, metrics: RetrainMetrics) -> None:
    """What the run came to and when the next one is due; a run that said nothing does not end the schedule."""
    line = json.dumps({"run_id": "r1", "promoted": True, "reason": "AP 0.50"})
    with caplog.at_level(logging.INFO):
        Job([sys.executable, "-c", f"print({line!r})"], WEEKLY, metrics).run()
        Job([sys.executable, "-c", "print('no JSON'); exit(3)"], WEEKLY, metrics).run()
    assert "run r1 ended with exit code 0, promoted: AP 0.50" in caplog.text
    assert "run None ended with exit code 3, busy: see above" in caplog.text
    assert caplog.text.count("next run at") == 2


@pytest.mark.parametrize(
    ("says", "code", "outcome", "result"),
    [
        ({"promoted": True}, 0, "promoted", 1),
        ({"promoted": False}, 0, "refused", 1),
        ({"promoted": False, "decision": "shadow"}, 0, "shadowed", 1),
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
    assert sum(value("runs_total", outcome=name) for name in ("promoted", "shadowed", "refused", "failed", "busy")) == 1
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


def test_what_was_fetched_is_counted(metrics: RetrainMetrics) -> None:
    """A run that failed for want of data still tells what became of the fetches."""
    line = json.dumps({"fetches": {"fetched": 2, "failed": 1}})
    Job([sys.executable, "-c", f"print({line!r}); exit(1)"], WEEKLY, metrics).run()
    counts = [value(metrics, "fetches_total", outcome=name) for name in ("fetched", "unpublished", "failed")]
    assert counts == [2, 0, 1]


def test_a_restart_remembers_the_last_success(tmp_path: Path) -> None:
    """It is the newest run that is done; a failed one and a broken file are passed over, and none is NaN."""
    assert math.isnan(last_success(tmp_path))
    states = [("done", "2026-01-05T03:04:05.000Z"), ("failed", "2026-02-02T03:00:00.000Z")]
    for i, (state, at) in enumerate(states):
        (tmp_path / f"r{i}").mkdir()
        (tmp_path / f"r{i}" / "status.json").write_text(json.dumps({"state": state, "at": at}))
    (tmp_path / "r9").mkdir()
    (tmp_path / "r9" / "status.json").write_text("[")
    assert last_success(tmp_path) == datetime.fromisoformat(states[0][1]).timestamp()


@pytest.fixture
def site() -> Iterator[dict[str, str]]:
    """A server of texts by path; "at" is its address."""
    texts: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = texts.get(self.path.partition("?")[0], "").encode()
            self.send_response(200 if text else 503)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        texts["at"] = f"http://127.0.0.1:{server.server_port}"
        yield texts
        server.shutdown()
        thread.join()


def gauge(index: float) -> str:
    """What a worker with this drift of its scores publishes."""
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    metrics.drift.labels("trip_distance").set(9)
    metrics.drift.labels("anomaly_score").set(index)
    return generate_latest(registry).decode()


def test_drift_is_read_from_workers_and_prometheus(site: dict[str, str]) -> None:
    """The highest index of the scores counts; a worker that is away is passed over while another answers."""
    site["/metrics"] = gauge(0.4)
    result = {"data": {"result": [{"metric": {}, "value": [1.0, "0.5"]}]}}
    site["/api/v1/query"] = json.dumps(result)
    assert drift.read([site["at"] + "/metrics"]) == pytest.approx(0.4)
    assert drift.read([site["at"] + "/away/metrics", site["at"]]) == pytest.approx(0.5)
    site["/api/v1/query"] = json.dumps({"data": {"result": []}})
    assert math.isnan(drift.read([site["at"]]))
    with pytest.raises(ServiceError, match="503"):
        drift.read([site["at"] + "/away/metrics"])
    with pytest.raises(ParameterError, match="ftp://x"):
        drift.addresses("http://a/metrics, ftp://x")


def test_only_lasting_drift_counts() -> None:
    """The bound has to be exceeded without a break for the whole time, and a pause follows what was done about it."""
    seen = [(0.0, 0.3), (9.0, 0.3), (10.0, math.nan), (11.0, 0.3), (20.0, 0.3), (21.0, 0.3)]
    times = iter([time for time, _ in seen] + [21.0, 22.0, 40.0, 120.0, 121.0])
    hold = drift.Hold(0.25, 10, 100, clock=lambda: next(times))
    answers = [hold.add(index) for _, index in seen]
    assert answers == [False, False, False, False, False, True]
    hold.answered()
    assert [hold.add(0.3) for _ in range(4)] == [False, False, False, True]


def test_lasting_drift_retrains_early(
    site: dict[str, str], metrics: RetrainMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    """One run for drift that stays; an address that does not answer is logged once and counted each time."""
    job = Job([sys.executable, "-c", "print('{}')"], WEEKLY, metrics)
    watch = Watch(job, [site["at"] + "/metrics"], drift.Hold(0.25, 0, 3600), metrics)
    watch.look()
    watch.look()
    assert caplog.text.count("found no answer") == 1
    site["/metrics"] = gauge(0.1)
    watch.look()
    assert value(metrics, "early_runs_total") == 0
    site["/metrics"] = gauge(0.3)
    watch.look()
    watch.look()
    assert value(metrics, "early_runs_total") == 1
    assert value(metrics, "drift_index") == pytest.approx(0.3)
    assert value(metrics, "drift_reads_total", outcome="failed") == 2


def schedule(notebooks: Path, *more: str) -> subprocess.Popen[str]:
    """A schedule on the small notebooks, in a process of its own, with its metrics at a free port."""
    command = [sys.executable, "-m", "pipelines", "schedule", "--cron", "0 3 * * 1", "--notebooks", str(notebooks)]
    environment = os.environ | {"FRAUDLIB_SCHEDULE_METRICS_PORT": "0"}
    return subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [("sed=1", "unknown parameter sed"), ("train_months=latest:x", "expected latest:N")],
)
def test_a_wrong_parameter_is_refused_at_start(notebooks: Path, assignment: str, message: str) -> None:
    """A misspelt parameter is not found out on Monday at three."""
    with schedule(notebooks, "-p", assignment) as process:
        assert message in process.communicate(timeout=60)[1]
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
