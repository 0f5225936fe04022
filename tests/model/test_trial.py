"""Pooled plantings, what they take, baselines, and the habits of records."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fraudlib import baselines, evaluation, features, fraud, quality, trial
from fraudlib.training import TAUGHT


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


@pytest.fixture(scope="module")
def small(room):
    """A few training trips, and features of honest trips and of frauds beside them."""
    frauds = trial.plant(room.valid, 0.1, 1, 901)
    return baselines.sample(room.train, 1500, 7), room.statistics, room.valid, frauds


@pytest.mark.parametrize("name", baselines.ON_FEATURES)
def test_baselines_on_features(small, name):
    """Each scores frauds above honest trips more often than not, is finite where fields are missing, and repeats."""
    train, usual, honest, frauds = small
    x, judged = (features.build(c, usual) for c in (train, features.concat([honest, frauds.columns])))
    scores = [baselines.ON_FEATURES[name](x, 7)(judged) for _ in range(2)]
    np.testing.assert_allclose(scores[0], scores[1])
    assert np.isfinite(baselines.ON_FEATURES[name](x, 7)(np.full((2, x.shape[1]), np.nan, dtype=np.float32))).all()
    label = np.repeat([False, True], [features.row_count(honest), len(frauds.kind)])
    assert roc_auc_score(label, scores[0]) > 0.6


def test_ecod_is_the_sum_of_tails():
    """By hand, on two features without skew: minus log of the share at least as far out, the larger side."""
    train = np.array([[-2, 0], [-1, 0], [0, 0], [1, 0], [2, 0]], dtype=np.float32)
    score = baselines.ecod(train, 0)(np.array([[2, 0], [0, 0], [9, 0]], dtype=np.float32))
    np.testing.assert_allclose(score, [-np.log(1 / 5), -np.log(3 / 5), -np.log(0.5 / 5)])


def test_taught_baselines_know_what_they_were_taught(small):
    """Shown the kinds, boosting finds them far better than shown corruption alone; both repeat with the seed."""
    train, usual, honest, frauds = small
    x = features.build(features.concat([honest, frauds.columns]), usual)
    label = np.repeat([False, True], [features.row_count(honest), len(frauds.kind)])
    auc = {n: roc_auc_score(label, d(train, x)) for n, d in baselines.taught(train, usual, 7).items()}
    assert auc["boosting, taught fraud only"] > auc["boosting, taught corruption only"] > 0.6
    again = baselines.TAUGHT["boosting, taught as the head"](train, usual, TAUGHT, 7)(x)
    assert roc_auc_score(label, again) == pytest.approx(auc["boosting, taught as the head"])


def test_all_rivals_are_offered_by_one_call(small, room):
    """The notebook gets every detector by name, and each takes trips with their features."""
    train, usual, honest, _ = small
    rivals = baselines.unlabelled(baselines.sample(train, 400, 1), usual, 7)
    assert list(rivals) == [*baselines.BASELINES, *baselines.ON_FEATURES]
    rivals["sum of surprises"] = baselines.sum_of_surprises(room.scorer)
    few = features.take(honest, slice(0, 50))
    for score in rivals.values():
        assert score(few, features.build(few, usual)).shape == (50,)


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
