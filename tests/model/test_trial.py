"""Pooled plantings, what they take, baselines, and the habits of records."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fraudlib import baselines, evaluation, features, fraud, quality, trial


@pytest.fixture(scope="module")
def some(sample):
    return features.take(sample, slice(0, 8000))


@pytest.fixture(scope="module")
def planted(some):
    return trial.plant(some, 0.05, 2, 900)


def test_rounds_are_pooled(some, planted):
    """Two rounds hold twice the frauds of one, other rows of every kind, and honest trips stay as they are."""
    one = trial.plant(some, 0.05, 1, 900)
    assert len(planted.kind) == pytest.approx(2 * len(one.kind), rel=0.1)
    assert set(planted.kind) == set(fraud.LISTED)
    assert all(len(v) == len(planted.kind) for v in (*planted.columns.values(), *planted.changed.values()))


def test_same_seed_same_frauds(some, planted):
    """The same seed gives the same trips, another seed others."""
    again, other = trial.plant(some, 0.05, 2, 900), trial.plant(some, 0.05, 2, 902)
    np.testing.assert_array_equal(again.columns["fare_amount"], planted.columns["fare_amount"])
    assert not np.array_equal(other.columns["fare_amount"], planted.columns["fare_amount"])


def test_losses_are_what_the_victim_pays(planted):
    """A ghost trip takes its whole total, a phantom toll a few dollars; none is negative."""
    assert planted.loss_usd.min() >= 0
    ghost = planted.kind == "ghost_card"
    np.testing.assert_allclose(planted.loss_usd[ghost], planted.columns["total_amount"][ghost])
    assert 2 < np.median(planted.loss_usd[planted.kind == "toll_phantom"]) < 30


def test_honest_trips_lose_nothing(some):
    """Without a kind there is no loss, whatever the totals say."""
    n = features.row_count(some)
    assert evaluation.loss_usd(some, some, np.full(n, "")).sum() == 0


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_baselines_beat_chance_and_repeat(some, planted, name):
    """Each scores frauds above honest trips more often than not, and the same with the same seed."""
    train = baselines.sample(some, 2000, 7)
    detectors = [baselines.BASELINES[name](train, 7) for _ in range(2)]
    scores = [np.append(d(some), d(planted.columns)) for d in detectors]
    np.testing.assert_allclose(scores[0], scores[1])
    label = np.repeat([False, True], [features.row_count(some), len(planted.kind)])
    assert roc_auc_score(label, scores[0]) > 0.55


def test_habits_are_shares(some):
    """Every habit is a share, and the simulated month shows the ones that real months are known for."""
    habits = quality.habits(some)
    assert all(0 <= share <= 1 for share in habits.values())
    assert habits["total below zero (voids)"] < 0.02 < habits["no miles"]
    assert habits["of metered trips: fare above the meter's most"] < 0.01


def test_missing_and_unseen(room):
    """Blank columns are counted, and training knows its own zones better than another day's."""
    assert quality.missing(room.train)["ehail_fee"] == 1.0
    assert quality.missing(room.train)["fare_amount"] == 0.0
    train, valid = (quality.unseen(c, room.statistics) for c in (room.train, room.valid))
    assert train["a pair seldom or never seen"] < valid["a pair seldom or never seen"]
