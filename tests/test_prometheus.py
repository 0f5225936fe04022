"""Scraping, recording and alerting: Prometheus takes the files, and every alert fires when it should and only then."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fraudlib import paths

ROOT = paths.root()
FOLDER = ROOT / "docker" / "prometheus"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
TESTS = sorted((FOLDER / "tests").glob("*.yml"))

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Debian's package prometheus)"
)


def promtool(*arguments: str | Path) -> str:
    """Output of a run that must succeed."""
    run = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def load(path: Path) -> Any:
    """A YAML file."""
    return yaml.safe_load(path.read_text())


def rules(kind: str) -> list[dict[str, Any]]:
    """Every rule that has the key `kind`: alert or record."""
    return [rule for path in RULES for group in load(path)["groups"] for rule in group["rules"] if kind in rule]


@needs_promtool
def test_prometheus_takes_the_configuration_and_every_rule() -> None:
    """promtool reads the scrape configuration with its rule files."""
    assert "rules found" in promtool("check", "config", FOLDER / "prometheus.yml")


@needs_promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_rules_pass_their_unit_tests(path: Path) -> None:
    """promtool evaluates the rules over made-up series."""
    assert "SUCCESS" in promtool("test", "rules", path)


def test_every_alert_is_tested_firing_and_silent() -> None:
    """An alert without one of the two could fire always, or never."""
    cases = [case for path in TESTS for test in load(path)["tests"] for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in rules("alert")}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


def test_every_alert_says_what_it_is_and_where_to_read_on() -> None:
    """Severity, summary, description, and a paragraph of its own in docs/operations.md."""
    anchors = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    }
    for rule in rules("alert"):
        notes = rule["annotations"]
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert notes["summary"], rule["alert"]
        assert notes["description"].endswith("."), rule["alert"]
        page, anchor = notes["runbook_url"].split("#")
        assert (page, anchor) == ("docs/operations.md", rule["alert"].lower())
        assert anchor in anchors, f"docs/operations.md has no heading {rule['alert']}"


def test_what_is_recorded_is_used() -> None:
    """By an alert or a panel."""
    used = " ".join(rule["expr"] for rule in rules("alert"))
    used += " ".join(path.read_text() for path in (ROOT / "docker" / "grafana" / "dashboards").glob("*.json"))
    assert [rule["record"] for rule in rules("record") if rule["record"] not in used] == []


def test_the_page_of_metrics_lists_what_is_recorded() -> None:
    """Every recording rule, and none that is not there."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"`(fraudlib:[\w:]+)`", page)) == {rule["record"] for rule in rules("record")}
