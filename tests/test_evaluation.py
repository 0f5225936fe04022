"""Metrics, gate and splits: right against a reference, honest about intervals, and refusing what they should."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from fraudlib import evaluation, splits
from fraudlib.errors import DataError


@pytest.fixture
def trial() -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores with ties, of a detector that is good but not perfect."""
    rng = np.random.default_rng(3)
    label = rng.random(4000) < 0.05
    return label, np.round(rng.normal(size=4000) + 2.0 * label, 2)


def test_ranking_equals_scikit_learn(trial) -> None:
    """Average precision and ROC AUC from the sorted scores are scikit-learn's, ties included."""
    label, score = trial
    curve = evaluation.Ranking(label, score).curve()
    assert curve.average_precision(label.mean()) == pytest.approx(average_precision_score(label, score), abs=1e-9)
    assert curve.roc_auc() == pytest.approx(roc_auc_score(label, score), abs=1e-9)


def test_intervals_hold_the_value(trial) -> None:
    """Each metric lies inside its own interval, and more trips make it narrower."""
    label, score = trial
    small = evaluation.evaluate(label, score, 2.0, rounds=60)
    large = evaluation.evaluate(np.tile(label, 9), np.tile(score, 9), 2.0, rounds=60)
    for metrics in (small, large):
        part = metrics["average_precision"]
        assert part["low"] <= part["value"] <= part["high"]
    width = [m["average_precision"]["high"] - m["average_precision"]["low"] for m in (small, large)]
    assert width[1] < 0.6 * width[0]


def test_threshold_keeps_its_budget() -> None:
    """The chosen threshold flags the stated share of the honest trips that it was chosen on."""
    score = np.random.default_rng(1).normal(size=10_000)
    assert (score > evaluation.choose_threshold(score, 0.01)).mean() == pytest.approx(0.01, abs=1e-3)


def test_wilson_at_the_edges() -> None:
    """No hits, all hits and no trials give intervals inside 0 and 1."""
    for hits, n in ((0, 50), (50, 50), (0, 0)):
        interval = evaluation.wilson(hits, n)
        assert -1e-9 <= interval.low <= interval.high <= 1 + 1e-9


def test_drift_is_what_leaves_the_promise() -> None:
    """Inside the promised interval is no drift even below the budget; outside it is, and by which factor."""
    promise = evaluation.Interval(0.008, 0.006, 0.010)
    calm = evaluation.drift(evaluation.wilson(70, 10_000), 0.01, promise)
    moved = evaluation.drift(evaluation.wilson(150, 10_000), 0.01, promise)
    assert (calm["drifted"], moved["drifted"]) == (False, True)
    assert moved["factor"] == pytest.approx(1.5)
    assert moved["over_expected"] == pytest.approx(1.875)


@pytest.mark.parametrize("valid", ["2023-02", "2023-03", "2022-12"])
def test_splits_follow_each_other(valid) -> None:
    """A validation period that overlaps the training, or comes before it, is refused by both names."""
    with pytest.raises(DataError, match="train"):
        splits.check_order({"train": "2023-01:2023-03", "valid": valid})
