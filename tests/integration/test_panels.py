"""The dashboards' queries and the rules against a real Prometheus that scrapes the running services."""

import contextlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fraudlib import paths

from .conftest import Site, free_port, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus (Debian's package prometheus)"),
]
DOCKER = paths.root() / "docker"
GHOST = {"trip_distance": 0.02, "fare_amount": 450, "duration_minutes": 0.3, "RatecodeID": 5, "total_amount": 450}
BATCH = 60


def trips(rng: random.Random) -> list[dict[str, Any]]:
    """Plain trips, and one that is flagged."""
    plain = []
    for _ in range(BATCH):
        miles = round(rng.uniform(0.5, 8), 2)
        minutes = round(miles * rng.uniform(3, 6), 1)
        fare = round(3 + 3.5 * miles + 0.25 * minutes, 2)
        plain.append({"trip_distance": miles, "fare_amount": fare, "duration_minutes": minutes})
    return [*plain, GHOST]


def configuration(**ports: str) -> dict[str, Any]:
    """The committed one, with the rules by their full path, these targets, and a scrape each second."""
    config: dict[str, Any] = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DOCKER / "prometheus" / rules) for rules in config["rule_files"]]
    config["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in ports.items()
    ]
    return config


def recorded() -> list[str]:
    """What the recording rules record."""
    rules = yaml.safe_load((DOCKER / "prometheus" / "rules" / "recording.yml").read_text())
    return [rule["record"] for group in rules["groups"] for rule in group["rules"]]


class Server:
    """A Prometheus of its own."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.url = f"127.0.0.1:{free_port()}"
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
                *(f"--web.listen-address={self.url}", "--log.level=error"),
            ],
            start_new_session=True,
        )

    def get(self, path: str, **parameters: str) -> Any:
        """Data of an answer; None while it does not answer."""
        try:
            query = urllib.parse.urlencode(parameters)
            with urllib.request.urlopen(f"http://{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
                return json.load(answer)["data"]
        except OSError:
            return None

    def values(self, query: str) -> list[float]:
        """What a query gives now, NaN left out."""
        found = self.get("query", query=query) or {"result": []}
        return [value for item in found["result"] if not math.isnan(value := float(item["value"][1]))]


@pytest.fixture(scope="module")
def prometheus(shared_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Broker, API, worker and schedule under a few seconds of traffic, watched by Prometheus."""
    site, port = shared_site, str(free_port())
    for name in ("broker", "api"):
        site.start(name)
    worker = site.start("worker", FRAUDLIB_METRICS_PORT=port)
    schedule, clock = str(free_port()), [sys.executable, "-m", "pipelines", "schedule", "--cron", "0 3 * * 1"]
    env = {**os.environ, **site.env, "FRAUDLIB_SCHEDULE_METRICS_PORT": schedule}
    job = subprocess.Popen(clock, env=env, stderr=subprocess.DEVNULL, cwd=paths.root(), start_new_session=True)
    ports = {"api": site.env["FRAUDLIB_API_PORT"], "worker": port, "retrain": schedule}
    server = Server(tmp_path_factory.mktemp("prometheus"), configuration(**ports))
    try:
        until(lambda: worker.says("partitions assigned") and site.is_ready(), why=f"services, see {worker.log}")
        until(lambda: len(server.values("fraudlib_worker_transactions_total >= 0")) == 1, why="a first scrape")
        rng = random.Random(7)
        until(lambda: _traffic(site, rng) and server.values("count(fraudlib_worker_drift_index)"), why="drift")
        until(lambda: server.values("fraudlib_retrain_next_run_timestamp_seconds > 0"), why="the schedule's metrics")
        until(lambda: _traffic(site, rng) and all(map(server.values, recorded())), why="recorded rules")
        yield server
    finally:
        for process in (server.process, job):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def _traffic(site: Site, rng: random.Random) -> bool:
    """One bulk of trips, one bad record and one verdict; true once they are sent."""
    lines = "\n".join(json.dumps(trip) for trip in trips(rng)).encode()
    status, _, answer = site.call("/transactions", lines, Content_Type="application/x-ndjson")
    assert status == 202, answer
    assert site.call("/transaction", {"fare_amount": "none"})[0] == 422
    label = {"transaction_id": answer["results"][-1]["transaction_id"], "verdict": "honest"}
    assert site.call("/labels", label)[0] in (200, 202)
    return True


@pytest.mark.parametrize("name", ["fraud-detection", "fraud-retraining"])
def test_no_panel_is_empty_on_a_first_start(prometheus: Server, name: str) -> None:
    """Every query of every panel, and of the annotations, gives a number within seconds, on a CPU too."""
    board = json.loads((DOCKER / "grafana" / "dashboards" / f"{name}.json").read_text())
    asked = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel.get("targets", [])]
    asked += [(note["name"], note["expr"]) for note in board["annotations"]["list"]]
    empty = [
        (title, query) for title, query in asked if not prometheus.values(re.sub(r"\$__rate_interval", "20s", query))
    ]
    assert empty == []


def test_the_panels_show_what_happened(prometheus: Server) -> None:
    """Scores were given, alerts raised, verdicts taken, and their distribution adds up to the count."""
    (scored,) = prometheus.values("sum(fraudlib_worker_transactions_total)")
    assert scored > 500
    assert prometheus.values("sum(fraudlib_worker_alerts_total)")[0] >= scored / (BATCH + 1) / 2
    (counted,) = prometheus.values("sum(fraudlib_worker_anomaly_score_count)")
    assert abs(counted - scored) <= BATCH + 1
    (flagged,) = prometheus.values(
        "1 - sum(fraudlib_worker_anomaly_score_bucket{le='1.0'}) / sum(fraudlib_worker_anomaly_score_count)"
    )
    assert 0 < flagged < 1
    assert prometheus.values("sum(fraudlib_api_labels_total{verdict='honest'})")[0] > 0


def test_every_rule_is_evaluated_without_an_error(prometheus: Server) -> None:
    """And nothing pages while the services are well."""
    groups = prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 25
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    paging = [rule for rule in rules if rule["type"] == "alerting" and rule["labels"]["severity"] == "page"]
    assert [rule["name"] for rule in paging if rule["state"] == "firing"] == []
