"""Operating points: what a threshold does, and three ways to choose one."""

import numpy as np
import pytest

from fraudlib import operating
from fraudlib.errors import ParameterError

HONEST = -0.5 * np.log(np.linspace(1e-4, 1, 3001))  # rare scores are high ones
FRAUD = np.linspace(1, 5, 401)
GRID = np.linspace(0, 5, 501)


@pytest.fixture(scope="module")
def swept() -> operating.Sweep:
    return operating.sweep(HONEST, FRAUD, GRID, 0.01, 1000.0, 2.0, 50.0)


def test_rates_fall_with_the_threshold(swept: operating.Sweep) -> None:
    """A higher threshold flags fewer honest trips and fewer frauds; above every score it flags none."""
    for rate in (swept.false_positive_rate, swept.recall, swept.alerts_per_day):
        assert np.all(np.diff(rate) <= 0)
        assert rate[-1] == 0
    assert swept.recall[0] == 1.0


def test_cost_is_reviews_and_losses(swept: operating.Sweep) -> None:
    """Flagging nothing costs every fraud's loss, flagging all costs every review."""
    assert swept.cost_usd_per_day[-1] == pytest.approx(1000 * 0.01 * 50.0)
    assert swept.cost_usd_per_day[0] == pytest.approx(1000 * 2.0, rel=0.01)


def test_each_way_keeps_what_it_promises(swept: operating.Sweep) -> None:
    """Budget: that share of honest trips; alerts: no more than the staff can see; cost: nothing is cheaper."""
    chosen = operating.choices(HONEST, swept, budget=0.02, reviews_per_day=15)
    assert tuple(chosen) == operating.CHOICES
    assert chosen["budget"]["false_positive_rate"] == pytest.approx(0.02, abs=0.003)
    assert chosen["alerts"]["alerts_per_day"] <= 15
    lower = swept.row(chosen["alerts"]["threshold"] - 0.01)
    assert lower["alerts_per_day"] > 15
    assert chosen["cost"]["cost_usd_per_day"] == pytest.approx(swept.cost_usd_per_day.min())


def test_a_dearer_review_raises_the_threshold(swept: operating.Sweep) -> None:
    """The more a review costs, the fewer trips are worth one."""
    dear = operating.sweep(HONEST, FRAUD, GRID, 0.01, 1000.0, 20.0, 50.0)
    cheapest = [operating.choices(HONEST, s, 0.01, 10)["cost"]["threshold"] for s in (swept, dear)]
    assert cheapest[0] < cheapest[1]


def test_staff_that_can_see_nothing(swept: operating.Sweep) -> None:
    """With no reviews a day the threshold lies above every score."""
    assert operating.choices(HONEST, swept, 0.01, 0)["alerts"]["alerts_per_day"] == 0


def test_an_unknown_way_is_refused() -> None:
    """The message lists the ways that there are."""
    with pytest.raises(ParameterError, match="budget, alerts, cost"):
        operating.check_choice("luck")
