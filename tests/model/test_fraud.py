"""Planted fraud: every kind does what it says and keeps the identities that it does not break."""

import numpy as np
import pytest

from fraudlib import features, fraud
from fraudlib.errors import DataError
from fraudlib.fraud import KINDS, LISTED, UNLISTED


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_changes_its_rows_only(sample, name):
    """A planted row differs from the trip it was, every other row is untouched, and the original is not changed."""
    before = {k: v.copy() for k, v in sample.items()}
    planted = fraud.plant(sample, 0.003, 3, [name])
    assert planted.label.sum() > 0
    assert set(planted.kind[planted.label]) == {name}
    for column, values in sample.items():
        np.testing.assert_array_equal(values, before[column])
        np.testing.assert_array_equal(planted.columns[column][~planted.label], values[~planted.label])
    different = np.any(
        [planted.columns[c] != sample[c] for c in ("fare_amount", "total_amount", "pickup_datetime")], axis=0
    )
    assert different[planted.label].mean() > 0.95


@pytest.mark.parametrize("name", [k for k in LISTED if k != "padded_total"])
def test_totals_follow_their_parts(sample, name):
    """Unless the fraud is in the total itself, the record adds up exactly as well as it did before."""
    planted = fraud.plant(sample, 0.003, 3, [name])
    assert not planted.changed["total_amount"].any()


def test_amounts_are_whole_cents(sample):
    """No planted amount has fractions of a cent, which would give the planting away."""
    planted = fraud.plant(sample, 0.05, 5)
    for column in ("fare_amount", "tip_amount", "tolls_amount", "extra", "total_amount"):
        cents = planted.columns[column][planted.label] * 100
        np.testing.assert_allclose(cents, np.round(cents), atol=1e-6)


def test_zapper_stays_inside_the_tariff(sample, room):
    """A hard kind keeps the fare inside the meter's envelope."""
    planted = fraud.plant(sample, 0.01, 5, ["meter_zapper"])
    rows = np.flatnonzero(planted.label)
    x = features.build(features.take(planted.columns, rows), room.statistics)
    over = x[:, features.FEATURE_NAMES.index("fare_over_high")]
    assert (over > 0).mean() < 0.05


def test_same_seed_same_planting(sample):
    """Same trips, share and seed give the same planting; another seed gives another."""
    first, again, other = (fraud.plant(sample, 0.01, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.kind, again.kind)
    np.testing.assert_array_equal(first.columns["fare_amount"], again.columns["fare_amount"])
    assert (first.kind != other.kind).any()


def test_rare_circumstances_keep_their_honest_trips(sample):
    """However much is asked for, most toll trips stay honest."""
    planted = fraud.plant(sample, 0.5, 1, ["toll_inflated"])
    with_toll = sample["tolls_amount"] > 1
    assert planted.label[with_toll].mean() <= fraud.MAX_SHARE_OF_ELIGIBLE


def test_corruption_is_visible(sample):
    """A corrupted trip differs in at least one field, and the label says so."""
    corrupted = fraud.corrupt(sample, 0.2, 1)
    changed = np.any(list(corrupted.changed.values()), axis=0)
    np.testing.assert_array_equal(corrupted.label, changed)
    assert 0.15 < corrupted.label.mean() <= 0.2


def test_each_kind_has_a_source_and_a_family():
    """Twelve documented kinds at least, in families; the unlisted ones are never taught."""
    assert len(LISTED) >= 12
    assert all(KINDS[name].source and KINDS[name].family for name in LISTED)
    assert not set(LISTED) & set(UNLISTED)


@pytest.mark.parametrize(("share", "kinds"), [(0.0, LISTED), (1.0, LISTED), (0.1, ["made_up"])])
def test_wrong_plan(sample, share, kinds):
    """An impossible share or an unknown kind is refused by name."""
    with pytest.raises(DataError, match="plant"):
        fraud.plant(sample, share, 1, kinds)


def test_most_of_the_corruption_adds_up(sample):
    """A corrupted part is added to the total again more often than not, so that sums alone do not give it away."""
    corrupted = fraud.corrupt(sample, 0.2, 1)
    alone = corrupted.changed["tip_amount"] & (sum(c.astype(int) for c in corrupted.changed.values()) == 1)
    added = corrupted.columns["total_amount"] - sample["total_amount"]
    tip = corrupted.columns["tip_amount"] - sample["tip_amount"]
    assert 0.6 < (np.abs(added - tip) < 0.02)[alone].mean() < 0.8
