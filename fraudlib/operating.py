"""Operating points: what a threshold flags, finds and costs, and three ways to choose one."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fraudlib.errors import ParameterError
from fraudlib.evaluation import choose_threshold

Array = NDArray[np.float64]
CHOICES: Final = ("budget", "alerts", "cost")


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


def choices(honest: Array, swept: Sweep, budget: float, reviews_per_day: float) -> dict[str, dict[str, float]]:
    """Threshold that each way would choose, with what it does.

    Parameters
    ----------
    honest : scores of honest validation trips, (n,). budget : share of them that may be flagged.
    reviews_per_day : alerts that the staff can look at; the lowest threshold that keeps within it is taken.
    """
    within = np.flatnonzero(swept.alerts_per_day <= reviews_per_day)
    staff = swept.threshold[within[0]] if len(within) else swept.threshold[-1]
    chosen = {
        "budget": choose_threshold(honest, budget),
        "alerts": float(staff),
        "cost": float(swept.threshold[int(np.argmin(swept.cost_usd_per_day))]),
    }
    return {name: swept.row(threshold) for name, threshold in chosen.items()}
