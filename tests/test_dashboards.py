"""Dashboards: Grafana finds them, every panel says what to look for, and asks only for metrics that there are."""

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from fraudlib import paths
from fraudlib.telemetry import ApiMetrics, RetrainMetrics, WorkerMetrics
from fraudlib.worker.gpu import DeviceMetrics

ROOT = paths.root()
DOCKER = ROOT / "docker"
DASHBOARDS = sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))
SUFFIXES = ("", "_bucket", "_count", "_sum")
# Metrics of the client library's process collector and of Prometheus itself.
OTHERS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "ALERTS", "up"}

each_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def load(path: Path) -> Any:
    """A dashboard."""
    return json.loads(path.read_text())


def panels(path: Path) -> list[dict[str, Any]]:
    """Panels that show something."""
    return [panel for panel in load(path)["panels"] if panel["type"] != "row"]


def queries(path: Path) -> list[str]:
    """What the panels and annotations ask for, with Grafana's own interval filled in."""
    found = [target["expr"] for panel in panels(path) for target in panel["targets"]]
    found += [note["expr"] for note in load(path)["annotations"]["list"]]
    return [query.replace("$__rate_interval", "20s") for query in found]


def known() -> set[str]:
    """Every metric of the services, every recorded one, and a few of others."""
    registry = CollectorRegistry()
    ApiMetrics(registry)
    WorkerMetrics(registry)
    DeviceMetrics(registry)
    RetrainMetrics(registry)
    families = {name for family in registry.collect() for name in (family.name, f"{family.name}_total")}
    rules = yaml.safe_load((DOCKER / "prometheus" / "rules" / "recording.yml").read_text())
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"]}
    return recorded | OTHERS | {name + suffix for name in families for suffix in SUFFIXES}


def named(query: str) -> set[str]:
    """Metrics that a query names."""
    bare = re.sub(r'"[^"]*"', "", query)
    return set(re.findall(r"\b(?:fraudlib[\w:]+|process_\w+|ALERTS|up)\b", bare))


def test_both_dashboards_are_provisioned_under_their_addresses() -> None:
    """Grafana reads the folder that compose mounts, and the uid is the address."""
    assert [path.stem for path in DASHBOARDS] == ["fraud-detection", "fraud-retraining"]
    assert [load(path)["uid"] for path in DASHBOARDS] == ["fraud-detection", "fraud-retraining"]
    provider = yaml.safe_load((DOCKER / "grafana" / "provisioning" / "dashboards" / "fraudlib.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    assert f"./docker/grafana/dashboards:{folder}:ro" in (ROOT / "docker-compose.yml").read_text()


@each_dashboard
def test_every_query_goes_to_the_provisioned_datasource(path: Path) -> None:
    """By its uid, so that none asks for a datasource that another Grafana happened to have."""
    source = yaml.safe_load((DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text())
    uids = {source["datasources"][0]["uid"]}
    text = path.read_text()
    assert set(re.findall(r'"type": "prometheus", "uid": "([^"]*)"', text)) == uids
    assert len(re.findall(r'"datasource":', text)) == len(re.findall(r'"type": "prometheus"', text))


@each_dashboard
def test_it_opens_on_what_happens_now(path: Path) -> None:
    """A first start fills the range within minutes, and the page renews itself."""
    board = load(path)
    assert board["time"] in ({"from": "now-15m", "to": "now"}, {"from": "now-1h", "to": "now"})
    assert board["refresh"] in ("5s", "30s")
    assert board["schemaVersion"] >= 36


@each_dashboard
def test_panels_have_a_place_of_their_own(path: Path) -> None:
    """Ids and query names are unique, nothing leaves the grid of 24, nothing overlaps."""
    every = load(path)["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    for panel in panels(path):
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs), panel["title"]
    boxes = [(panel["title"], *(panel["gridPos"][side] for side in "xywh")) for panel in every]
    assert all(x >= 0 and x + w <= 24 for _, x, _, w, _ in boxes)
    for (one, x, y, w, h), (other, x2, y2, w2, h2) in combinations(boxes, 2):
        apart = x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
        assert apart, f"{one} lies over {other}"


@each_dashboard
def test_every_panel_says_its_unit_and_what_to_look_for(path: Path) -> None:
    """A reader who has never seen it knows what a high value means."""
    for panel in panels(path):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len(panel["description"]) > 40, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], panel["title"]


@each_dashboard
def test_every_query_names_metrics_that_there_are(path: Path) -> None:
    """And each names at least one."""
    for query in queries(path):
        assert named(query), query
        assert named(query) <= known(), f"{named(query) - known()} in {query}"


def test_alerts_and_records_name_metrics_that_there_are() -> None:
    """An alert on a metric that was renamed would never fire again."""
    rules = [
        rule
        for path in (DOCKER / "prometheus" / "rules").glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    known_here = known() | {"process_start_time_seconds"}
    for rule in rules:
        assert named(rule["expr"]), rule
        assert named(rule["expr"]) <= known_here, f"{named(rule['expr']) - known_here} in {rule}"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian's package prometheus)")
@each_dashboard
def test_every_query_parses(path: Path, tmp_path: Path) -> None:
    """promtool reads each as if it were a recording rule."""
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries(path))]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert f"{len(rules)} rules found" in run.stdout


@each_dashboard
def test_promotions_are_marked_where_they_happened(path: Path) -> None:
    """The annotation's value is the time, in milliseconds, at which Grafana draws it."""
    (note,) = load(path)["annotations"]["list"]
    assert note["useValueForTime"] is True
    assert "fraudlib_worker_bundle_promoted_timestamp_seconds" in note["expr"]
    assert note["expr"].endswith("* 1000")
