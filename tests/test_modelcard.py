"""The model card: what it has to say, that it follows the numbers, and that the committed one is not stale."""

import subprocess
import sys
from pathlib import Path

import pytest

from fraudlib import manifest, modelcard, paths

INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6}
FIGURES = {
    "average_precision": INTERVAL,
    "average_precision_at_prevalence": {"0.001": INTERVAL},
    "roc_auc": INTERVAL,
    "recall_at_fpr": {"0.01": {"value": 0.8125, "low": 0.8, "high": 0.9}},
    "dollars_caught_at_fpr": {"0.01": INTERVAL},
    "precision_at_k": {"100": INTERVAL},
    "prevalence": 0.0125,
    "frauds": 1300,
    "honest": 65000,
}
KIND = {"recall": INTERVAL, "planted": 10, "family": "travel", "easy": False}
METRICS = FIGURES | {
    "recall_easy": INTERVAL,
    "recall_hard": INTERVAL,
    "without_resubmitted": FIGURES,
    "unlisted": FIGURES | {"by_kind": {"digit_slip": KIND}, "baselines": {"ECOD": INTERVAL}},
    "by_kind": {"long_haul": KIND},
    "by_kind_at_fpr": {"0.01": {"long_haul": KIND}},
    "reasons_hit": {"long_haul": {"value": None, "low": 0.0, "high": 1.0}},
    "left_out": {
        "false_positive_rate": 0.01,
        "families": {"travel": {"recall": {"value": 0.123, "low": 0.1, "high": 0.2}, "recall_taught": INTERVAL}},
        "mean_recall": INTERVAL,
        "mean_recall_taught": INTERVAL,
    },
    "baselines": {"ECOD": FIGURES},
    "taught_baselines": {"boosting": FIGURES},
    "drift": {"budget": 0.01, "expected": INTERVAL, "realised": INTERVAL, "drifted": True, "factor": 1.17},
}
POINT = {
    "threshold": 2.0,
    "false_positive_rate": 0.01,
    "recall": 0.8,
    "alerts_per_day": 40.0,
    "cost_usd_per_day": 197.0,
}
THRESHOLD = {
    "review": 2.0,
    "block": 3.0,
    "chosen_by": "budget",
    "false_positive_budget": 0.01,
    "alternatives": {"budget": POINT, "cost": POINT},
}


def bundle(**changes: object) -> manifest.Manifest:
    data = {
        "simulated": False,
        "service": "green",
        "files": [{"name": "green_tripdata_2023-01.parquet", "rows": 68211, "sha256": "9f0e" * 16}],
        "splits": {"train": {"period": "2023-01", "rows": 68211}},
    }
    values = {
        "format_version": 2,
        "bundle_id": "20260101T000000Z-aaaa",
        "run_id": "r",
        "created_at": manifest.now(),
        "git_commit": "unknown",
        "data": data,
        "parameters": {"width": 64, "latent_dim": 32},
        "libraries": {},
        "features": ["fare_log"],
        "threshold": THRESHOLD,
        "metrics": METRICS,
        "files": {},
    }
    return manifest.Manifest.model_validate(values | changes)


def test_it_says_what_a_card_has_to_say() -> None:
    """Purpose, misuse, data, figures with intervals, kinds, families left out, baselines, limits, ethics."""
    card = modelcard.card(bundle())
    for part in (
        "## What it is for",
        "Deciding about a person",
        "## Data",
        "| green_tripdata_2023-01.parquet | 68,211 |",
        "| recall at 1.0% false positives | 0.812 [0.800, 0.900] |",
        "without the trip sent twice",
        "| long haul | travel | hard | 10 |",
        "| travel | 0.123 [0.100, 0.200] |",
        "| ECOD |",
        "| boosting |",
        "the months drift",
        "## Limits",
        "## Ethical notes",
    ):
        assert part in card
    assert "None" not in card
    assert "{" not in card


def test_simulated_trips_are_named() -> None:
    """A card of the sample says so before any number."""
    card = modelcard.card(bundle(data={"simulated": True}))
    assert card.index("simulated trips") < card.index("## How good it is")


def test_what_was_not_measured_is_left_away() -> None:
    """A bundle without metrics still has a card, with purpose and limits and no empty table."""
    card = modelcard.card(bundle(metrics={}, threshold={"value": 1.0}))
    assert "## Limits" in card
    for absent in ("## How good it is", "## Kind by kind", "## Families", "## Against", "## Operating"):
        assert absent not in card


def test_the_committed_card_is_that_of_the_live_bundle() -> None:
    """docs/model-card.md is what the committed default bundle generates; it can never be stale."""
    root = paths.root()
    live = manifest.current_bundle(root / "artifacts")
    assert live is not None
    expected = modelcard.card(manifest.read_manifest(live))
    assert (root / "docs" / "model-card.md").read_text() == expected, (
        "write it anew: python -m fraudlib.modelcard > docs/model-card.md"
    )


def test_written_beside_a_run(tmp_path: Path, seal) -> None:
    """The run's card is the sealed bundle's."""
    folder = seal(tmp_path, "20260101T000000Z-aaaa")
    modelcard.write(folder, tmp_path / "card.md")
    assert (tmp_path / "card.md").read_text() == modelcard.card(manifest.read_manifest(folder))


@pytest.mark.parametrize("there", [True, False])
def test_the_command(tmp_path: Path, seal, there: bool) -> None:
    """The command prints the card of the named bundle; without one there it ends with a sentence."""
    folder = seal(tmp_path, "20260101T000000Z-aaaa") if there else tmp_path / "none"
    command = [sys.executable, "-m", "fraudlib.modelcard", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=paths.root())
    if there:
        assert result.stdout == modelcard.card(manifest.read_manifest(folder))
    else:
        assert result.returncode == 1
        assert "sealed folder" in result.stderr
        assert "Traceback" not in result.stderr
