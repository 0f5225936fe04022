"""Rarity: monotone, honest about shares, and safe at the edges."""

import json

import numpy as np
import pytest

from fraudlib import calibration
from fraudlib.calibration import Rarity, fit_rarity
from fraudlib.errors import SchemaError


def test_rarity_is_the_share_above():
    """A rarity of 2 is one in a hundred, on fresh values of the same kind."""
    rng = np.random.default_rng(0)
    rarity = fit_rarity(rng.exponential(size=50_000))
    fresh = rarity(rng.exponential(size=50_000))
    for level in (0.5, 1.0, 2.0, 3.0):
        assert (fresh > level).mean() == pytest.approx(10**-level, rel=0.35)


def test_rarity_is_strictly_monotone():
    """A larger raw value is never less rare, far beyond the last knot too."""
    rarity = fit_rarity(np.random.default_rng(1).normal(size=5000))
    values = rarity(np.linspace(-20, 1e6, 10_000))
    assert (np.diff(values) >= 0).all()
    assert np.isfinite(values).all()


@pytest.mark.parametrize("raw", [np.zeros(100), np.r_[np.zeros(999), 5.0], np.arange(5.0)])
def test_degenerate_samples(raw):
    """Constant, nearly constant and tiny samples still give a usable map."""
    values = fit_rarity(raw)(np.array([-1.0, 0.0, 1.0, 10.0, 1e9]))
    assert np.isfinite(values).all()
    assert (np.diff(values) >= 0).all()


def test_round_trip(room):
    """JSON gives the same scores back."""
    again = calibration.Calibration.from_json(json.loads(json.dumps(room.calibration.to_json())))
    logit = np.stack([np.linspace(-9, 9, 50), np.linspace(9, -9, 50)], axis=1)
    surprise = np.abs(np.random.default_rng(2).normal(size=(50, len(again.readings))))
    np.testing.assert_array_equal(room.calibration.score(logit, surprise), again.score(logit, surprise))


@pytest.mark.parametrize(
    "data", [{}, {"knots": [2, 1], "levels": [0, 1], "slope": 1}, {"knots": [1], "levels": [0], "slope": 1}]
)
def test_broken_json(data):
    """Knots that do not increase, or are missing, are refused."""
    with pytest.raises(SchemaError, match="calibration"):
        Rarity.from_json(data)


def test_a_raw_value_of_a_rarity():
    """No value below `raw_at` is as rare as asked for, inside the knots and beyond them."""
    rarity = fit_rarity(np.random.default_rng(3).exponential(size=20_000))
    for level in (0.5, 2.2, 6.0):
        assert rarity(np.array([rarity.raw_at(level) - 1e-6]))[0] <= level
        assert rarity(np.array([10 * rarity.raw_at(level) + 10]))[0] > level


def test_one_odd_reading_flags_alone(room):
    """A reading far out of the ordinary raises the score where the head sees nothing, the further the higher."""
    logit = np.full((3, 2), -20.0)
    surprise = np.zeros((3, len(room.calibration.readings)))
    surprise[1:, 0] = [1e9, 1e12]
    plain, odd, odder = room.calibration.score(logit, surprise)
    assert plain < 0.5
    assert calibration.CAP < odd < odder


def test_anything_changed_does_not_push_known_fraud_aside(room):
    """Equally rare, the second logit counts less than the first, and beyond the cap a quarter as much."""
    knots = room.calibration.anything.knots[-1] + np.array([1e3, 1e6])
    second = room.calibration.by_head(np.stack([np.full(2, -50.0), knots], axis=1))
    rise = np.diff(room.calibration.anything(knots))
    np.testing.assert_allclose(np.diff(second), calibration.BEYOND_CAP * rise)
    same = calibration.Calibration({}, room.calibration.known, room.calibration.known)
    far = room.calibration.known.knots[-1] + 1e6
    known, anything = same.by_head(np.array([[far, -50.0], [-50.0, far]]))
    assert known > anything > calibration.CAP
