"""What a worker shows of its bundle is what the manifest says, and of the bundle in use alone."""

import json
import os
import shutil
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fraudlib import paths
from fraudlib.bundle_metrics import BundleMetrics, expected_alerts
from fraudlib.manifest import current_bundle, read_manifest
from fraudlib.paths import CURRENT, MANIFEST


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """An artifacts folder with the manifest of the default bundle, promoted at a known time."""
    default = current_bundle(paths.root() / "artifacts")
    assert default is not None
    (tmp_path / default.name).mkdir()
    shutil.copy(default / MANIFEST, tmp_path / default.name)
    (tmp_path / CURRENT).write_text(default.name)
    os.utime(tmp_path / CURRENT, (1_700_000_000, 1_700_000_000))
    return tmp_path


def test_the_manifest_is_shown(artifacts: Path) -> None:
    """Threshold, budget, age and the time of the promotion, each as the files have it."""
    registry = CollectorRegistry()
    name = (artifacts / CURRENT).read_text()
    manifest = read_manifest(artifacts / name)
    BundleMetrics(registry).show(name, 2.5, artifacts)
    value = registry.get_sample_value
    assert value("fraudlib_worker_bundle_info", {"bundle_id": name}) == 1
    assert value("fraudlib_worker_threshold") == 2.5
    budget = value("fraudlib_worker_false_positive_budget_ratio")
    assert budget == manifest.threshold["false_positive_budget"]
    assert value("fraudlib_worker_bundle_promoted_timestamp_seconds", {"bundle_id": name}) == 1_700_000_000
    created = value("fraudlib_worker_bundle_created_timestamp_seconds")
    assert created is not None
    assert created > 1_700_000_000
    low, high = (value("fraudlib_worker_expected_alert_ratio", {"bound": bound}) for bound in ("low", "high"))
    assert low is not None
    assert high is not None
    assert budget is not None
    assert 0 < low < budget < high < 0.1


def test_the_next_bundle_leaves_nothing_of_the_last(artifacts: Path) -> None:
    """One without a readable manifest has no promise, and not its predecessor's."""
    registry = CollectorRegistry()
    metrics = BundleMetrics(registry)
    name = (artifacts / CURRENT).read_text()
    metrics.show(name, 2.5, artifacts)
    metrics.show("next", 3.0, artifacts)
    value = registry.get_sample_value
    assert value("fraudlib_worker_bundle_info", {"bundle_id": "next"}) == 1
    assert value("fraudlib_worker_bundle_info", {"bundle_id": name}) is None
    assert value("fraudlib_worker_bundle_promoted_timestamp_seconds", {"bundle_id": name}) is None
    assert value("fraudlib_worker_expected_alert_ratio", {"bound": "low"}) is None
    assert str(value("fraudlib_worker_false_positive_budget_ratio")) == "nan"


def test_a_bundle_that_promises_nothing_has_no_band(artifacts: Path) -> None:
    """A threshold without an expectation, or of no listed choice, is shown without one."""
    folder = artifacts / (artifacts / CURRENT).read_text()
    content = json.loads((folder / MANIFEST).read_text())
    content["threshold"]["chosen_by"] = "hand"
    (folder / MANIFEST).write_text(json.dumps(content))
    assert expected_alerts(read_manifest(folder)) == {}
