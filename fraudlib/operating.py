"""Operating points: what a threshold flags, finds and costs, three ways to choose one, and how well a choice holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fraudlib.errors import ParameterError
from fraudlib.evaluation import Interval, choose_threshold, wilson

Array = NDArray[np.float64]
CHOICES: Final = ("budget", "alerts", "cost")
FULL: Final = "budget in full"  # no choice of its own: what the margin of "budget" gives up


def check_choice(name: str) -> None:
    """Refuse a way to choose that there is none of."""
    if name not in CHOICES:
        raise ParameterError(f"threshold_by: expected one of {', '.join(CHOICES)}, found {name!r}")


@dataclass(frozen=True)
class Sweep:
    """What each threshold would do, (k,) each.

    Attributes
    ----------
    false_positive_rate, recall : shares of honest trips and of frauds flagged.
    alerts_per_day : flags, honest and fraud. cost_usd_per_day : reviews and what is missed.
    """

    threshold: Array
    false_positive_rate: Array
    recall: Array
    alerts_per_day: Array
    cost_usd_per_day: Array

    def row(self, threshold: float) -> dict[str, float]:
        """The sweep's values at the threshold."""
        names = ("false_positive_rate", "recall", "alerts_per_day", "cost_usd_per_day")
        values = {name: float(np.interp(threshold, self.threshold, getattr(self, name))) for name in names}
        return {"threshold": threshold, **values}


def _share_above(score: Array, threshold: Array) -> Array:
    return 1 - np.searchsorted(np.sort(score), threshold, side="right") / max(len(score), 1)


def sweep(
    honest: Array,
    fraud: Array,
    threshold: Array,
    prevalence: float,
    trips_per_day: float,
    review_cost_usd: float,
    loss_per_fraud_usd: float,
) -> Sweep:
    """Rates and costs of many thresholds.

    Parameters
    ----------
    honest, fraud : scores, (n,) and (m,). threshold : (k,), increasing.
    prevalence : share of fraud among all trips.

    Source: Elkan, The Foundations of Cost-Sensitive Learning, IJCAI 2001.
    """
    false, recall = _share_above(honest, threshold), _share_above(fraud, threshold)
    alerts = trips_per_day * (prevalence * recall + (1 - prevalence) * false)
    missed = trips_per_day * prevalence * (1 - recall)
    return Sweep(threshold, false, recall, alerts, review_cost_usd * alerts + loss_per_fraud_usd * missed)


DAYS_OF_WEEKS: Final = 21  # a period of at least this many days is cut into weeks, a shorter one into days


@dataclass(frozen=True)
class Blocks:
    """Weeks of a period, or its days where it has no three weeks.

    Attributes
    ----------
    index : block of each trip, (n,); -1 off the period's usual days. per_week : how many of them make a week, 1 or 7.
    """

    index: NDArray[np.int64]
    per_week: int

    def rates(self, flagged: NDArray[np.bool_]) -> Array:
        """Share flagged in each block that has trips, (b,)."""
        there = self.index >= 0
        trips = np.bincount(self.index[there])
        flags = np.bincount(self.index[there], weights=flagged[there], minlength=len(trips))
        return flags[trips > 0] / trips[trips > 0]


def blocks(pickup: NDArray[np.datetime64]) -> Blocks:
    """Cut a period by the times of its pickups, (n,)."""
    day = pickup.astype("datetime64[D]").astype(np.int64)
    known, count = np.unique(day[~np.isnat(pickup)], return_counts=True)
    usual = known[count > 0.02 * count.max(initial=0)]  # reset clocks leave a trip here and there in other years
    if not len(usual):
        return Blocks(np.full(len(pickup), -1, dtype=np.int64), 1)
    days = int(usual[-1] - usual[0]) + 1
    length = 7 if days >= DAYS_OF_WEEKS else 1
    # The days that are left over join the last week.
    index = np.minimum((day - usual[0]) // length, days // length - 1)
    inside = ~np.isnat(pickup) & (day >= usual[0]) & (day <= usual[-1])
    return Blocks(np.where(inside, index, -1), 7 // length)


def margin(parts: Sequence[tuple[Array, Blocks]], budget: float, confidence: float) -> float:
    """By which share the false positive rate of a week to come may lie above, or below, that of validation.

    Half the width of a prediction interval over the rate. The spread from block to block is that of validation and of
    the training trips together, each at its own quantile: the model knows the trips that it was trained on, so their
    level says nothing, but their unevenness does.

    Parameters
    ----------
    parts : scores of honest trips, (n,), and their blocks: validation first, then training.
    budget : share of honest trips flagged. confidence : of the two-sided interval, below 1; 0 leaves no margin.

    Source: Hahn and Meeker, Statistical Intervals (1991), ch. 4.
    """
    rates = [cut.rates(score > choose_threshold(score, budget)) for score, cut in parts]
    freedom = sum(max(len(r) - 1, 0) for r in rates)
    if freedom < 1 or confidence <= 0:
        return 0.0
    spread = np.sqrt(sum(float(np.sum((r / max(r.mean(), 1e-12) - 1) ** 2)) for r in rates if len(r)) / freedom)
    quantile = stats.t.ppf(0.5 + confidence / 2, freedom)
    return float(quantile * spread * np.sqrt(1 / parts[0][1].per_week + 1 / max(len(rates[0]), 1)))


def expected(rate: float, margin: float) -> Interval:
    """A week's false positive rate to come: validation's, less and more the margin."""
    return Interval(rate, max(rate * (1 - margin), 0.0), min(rate * (1 + margin), 1.0))


def realised(valid: NDArray[np.bool_], test: NDArray[np.bool_], pickup: NDArray[np.datetime64]) -> dict[str, Interval]:
    """Share flagged of validation, of the test period and of each of its weeks (or days), with 95 % intervals.

    Parameters
    ----------
    valid, test : flags of honest trips, (n,) and (m,). pickup : of the test trips, (m,).
    """
    cut = blocks(pickup)
    step = "week" if cut.per_week == 1 else "day"
    parts = {"validation": valid, "test": test}
    parts |= {f"test, {step} {i + 1}": test[cut.index == i] for i in range(int(cut.index.max(initial=-1)) + 1)}
    return {name: wilson(int(flags.sum()), len(flags)) for name, flags in parts.items()}


def choices(
    honest: Array, swept: Sweep, budget: float, margin: float, reviews_per_day: float
) -> dict[str, dict[str, float]]:
    """Threshold that each way would choose, with what it does, and the budget spent in full for comparison.

    Parameters
    ----------
    honest : scores of honest validation trips, (n,).
    budget : share of honest trips that may be flagged, in validation's rate times 1 + margin.
    reviews_per_day : alerts that the staff can look at; the lowest threshold that keeps within it is taken.
    """
    affordable = np.flatnonzero(swept.alerts_per_day <= reviews_per_day)
    staff = swept.threshold[affordable[0]] if len(affordable) else swept.threshold[-1]
    chosen = {
        "budget": choose_threshold(honest, budget / (1 + margin)),
        "alerts": float(staff),
        "cost": float(swept.threshold[int(np.argmin(swept.cost_usd_per_day))]),
        FULL: choose_threshold(honest, budget),
    }
    return {name: swept.row(threshold) for name, threshold in chosen.items()}
