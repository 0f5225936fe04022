"""What the worker shows of the bundle in use: its name, its age, its threshold and what it promises."""

import contextlib
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge

from fraudlib.errors import BundleError
from fraudlib.manifest import Manifest, read_manifest
from fraudlib.paths import CURRENT

BOUNDS: Final = ("low", "high")


class BundleMetrics:
    """Gauges of the bundle in use; all of them change at once with the bundle."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._info = Gauge("fraudlib_worker_bundle_info", "1 for the bundle in use", ["bundle_id"], registry=registry)
        self._promoted = Gauge(
            "fraudlib_worker_bundle_promoted_timestamp_seconds",
            "when artifacts/current was last written",
            ["bundle_id"],
            registry=registry,
        )
        self._created = Gauge(
            "fraudlib_worker_bundle_created_timestamp_seconds", "when the bundle was sealed", registry=registry
        )
        self._threshold = Gauge(
            "fraudlib_worker_threshold", "anomaly score above which a transaction is flagged", registry=registry
        )
        self._budget = Gauge(
            "fraudlib_worker_false_positive_budget_ratio",
            "share of honest transactions that the bundle may flag",
            registry=registry,
        )
        self._expected = Gauge(
            "fraudlib_worker_expected_alert_ratio",
            "share of transactions that the bundle promises to flag in a usual week",
            ["bound"],
            registry=registry,
        )

    def show(self, bundle_id: str, threshold: float, artifacts: Path) -> None:
        """Say which bundle is in use and what its manifest promises."""
        self._info.clear()
        self._info.labels(bundle_id).set(1)
        self._threshold.set(threshold)
        self._promoted.clear()
        for gauge in (self._created, self._budget):
            gauge.set(float("nan"))
        self._expected.clear()
        # It serves already; what can no longer be read of it is only not shown.
        with contextlib.suppress(OSError, BundleError):
            self._promoted.labels(bundle_id).set((artifacts / CURRENT).stat().st_mtime)
            self._promise(read_manifest(artifacts / bundle_id))

    def _promise(self, manifest: Manifest) -> None:
        self._created.set(datetime.fromisoformat(manifest.created_at).timestamp())
        self._budget.set(manifest.threshold.get("false_positive_budget", float("nan")))
        for bound, ratio in expected_alerts(manifest).items():
            self._expected.labels(bound).set(ratio)


def expected_alerts(manifest: Manifest) -> dict[str, float]:
    """Share of transactions flagged in a usual week, {"low", "high"}; empty where the manifest has no expectation.

    The low end is without any fraud, the high end with as much as the bundle was tuned for.
    """
    threshold: dict[str, Any] = manifest.threshold
    rate = threshold.get("expected_false_positive_rate", {}).get("review")
    chosen = threshold.get("alternatives", {}).get(threshold.get("chosen_by"))
    if not rate or not chosen:
        return {}
    prevalence = float(threshold.get("parameters", {}).get("prevalence", 0.0))
    high = (1 - prevalence) * float(rate["high"]) + prevalence * float(chosen["recall"])
    return dict(zip(BOUNDS, (float(rate["low"]), high), strict=True))
