"""Operating points: what a threshold does, three ways to choose one, and how well a choice holds."""

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
    chosen = operating.choices(HONEST, swept, budget=0.02, margin=0.0, reviews_per_day=15)
    assert tuple(chosen) == (*operating.CHOICES, operating.FULL)
    assert chosen["budget"]["false_positive_rate"] == pytest.approx(0.02, abs=0.003)
    assert chosen["alerts"]["alerts_per_day"] <= 15
    lower = swept.row(chosen["alerts"]["threshold"] - 0.01)
    assert lower["alerts_per_day"] > 15
    assert chosen["cost"]["cost_usd_per_day"] == pytest.approx(swept.cost_usd_per_day.min())


def test_a_dearer_review_raises_the_threshold(swept: operating.Sweep) -> None:
    """The more a review costs, the fewer trips are worth one."""
    dear = operating.sweep(HONEST, FRAUD, GRID, 0.01, 1000.0, 20.0, 50.0)
    cheapest = [operating.choices(HONEST, s, 0.01, 0.0, 10)["cost"]["threshold"] for s in (swept, dear)]
    assert cheapest[0] < cheapest[1]


def test_staff_that_can_see_nothing(swept: operating.Sweep) -> None:
    """With no reviews a day the threshold lies above every score."""
    assert operating.choices(HONEST, swept, 0.01, 0.0, 0)["alerts"]["alerts_per_day"] == 0


def test_an_unknown_way_is_refused() -> None:
    """The message lists the ways that there are."""
    with pytest.raises(ParameterError, match="budget, alerts, cost"):
        operating.check_choice("luck")


def month(days: int, a_day: int, start: str = "2023-04-01") -> np.ndarray:
    """Pickups, a day's worth on each day, and one of a reset clock."""
    times = np.datetime64(start, "us") + np.arange(days * a_day) * (np.timedelta64(86_400_000_000, "us") // a_day)
    return np.append(times, np.datetime64("2009-01-01T00:00:00", "us"))


def test_a_month_is_cut_into_weeks_and_a_week_into_days() -> None:
    """Thirty days make four weeks, the last one longer, six days make six days; reset clocks belong to none."""
    weeks, days = operating.blocks(month(30, 100)), operating.blocks(month(6, 100))
    assert (weeks.per_week, days.per_week) == (1, 7)
    assert np.bincount(weeks.index[:-1]).tolist() == [700, 700, 700, 900]
    assert np.bincount(days.index[:-1]).tolist() == [100] * 6
    assert weeks.index[-1] == days.index[-1] == -1
    assert (operating.blocks(np.array(["NaT", "NaT"], dtype="datetime64[us]")).index == -1).all()


def test_rates_of_blocks() -> None:
    """Each block has its own share of flags, and trips of no block count nowhere."""
    cut = operating.Blocks(np.array([0, 0, 1, 1, -1]), 1)
    np.testing.assert_allclose(cut.rates(np.array([True, False, True, True, True])), [0.5, 1.0])


def uneven(spread: float, seed: int = 4) -> tuple[np.ndarray, operating.Blocks]:
    """Honest scores of twelve weeks whose level moves by this much from week to week."""
    rng = np.random.default_rng(seed)
    cut = operating.blocks(month(84, 500)[:-1])
    return rng.exponential(size=len(cut.index)) + spread * rng.normal(size=12)[cut.index], cut


def test_the_margin_follows_the_unevenness() -> None:
    """Weeks that differ need more room than weeks that do not; no confidence, or a single block, asks for none."""
    even, rough = (operating.margin([uneven(s)], 0.02, 0.95) for s in (0.0, 0.5))
    assert 0.05 < even < 0.35 < rough
    assert operating.margin([uneven(0.5)], 0.02, 0.5) < rough
    assert operating.margin([uneven(0.5)], 0.02, 0.0) == 0.0
    assert operating.margin([(HONEST, operating.Blocks(np.zeros(len(HONEST), dtype=np.int64), 1))], 0.02, 0.95) == 0.0


def test_the_level_of_training_trips_says_nothing() -> None:
    """Training trips that score far lower, as trips known by heart do, leave the margin as it is."""
    (score, cut), (other, _) = uneven(0.2), uneven(0.2, seed=5)
    known = operating.margin([(score, cut), (other - 3.0, cut)], 0.02, 0.95)
    assert known == pytest.approx(operating.margin([(score, cut), (other, cut)], 0.02, 0.95))


def test_weeks_to_come_keep_the_budget() -> None:
    """Of weeks drawn like those of validation, the stated share lies within the promised interval and the budget."""
    kept, within = [], []
    for seed in range(60):
        score, cut = uneven(0.15, seed)
        past, future = cut.index < 8, cut.index >= 8
        half = operating.Blocks(cut.index[past], 1)
        margin = operating.margin([(score[past], half)], 0.05, 0.95)
        threshold = float(np.quantile(score[past], 1 - 0.05 / (1 + margin)))
        promised = operating.expected(float((score[past] > threshold).mean()), margin)
        assert promised.high <= 0.0505
        weeks = operating.Blocks(cut.index[future] - 8, 1).rates(score[future] > threshold)
        within += [(weeks >= promised.low) & (weeks <= promised.high)]
        kept += [weeks <= 0.05]
    assert 0.9 < np.mean(within) <= 1.0
    assert np.mean(kept) > 0.94


def test_a_margin_raises_the_budget_line_alone(swept: operating.Sweep) -> None:
    """With a margin the budget's threshold is higher and its recall lower; the budget in full stays for comparison."""
    plain, careful = (operating.choices(HONEST, swept, 0.02, m, 15) for m in (0.0, 0.25))
    assert plain["budget"] == plain[operating.FULL] == careful[operating.FULL]
    assert careful["budget"]["threshold"] > plain["budget"]["threshold"]
    assert careful["budget"]["recall"] < plain["budget"]["recall"]
    assert careful["alerts"] == plain["alerts"]
