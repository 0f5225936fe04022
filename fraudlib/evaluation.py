"""Metrics with intervals, operating points and baselines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from fraudlib.fraud import KINDS
from fraudlib.statistics import duration_minutes

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Columns = Mapping[str, NDArray[np.generic]]

OPERATING_POINTS: Final = (0.001, 0.005, 0.01, 0.031)  # false positive rates at which recall is reported


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """JSON-ready, four decimals."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def recall_at(label: Bools, score: Array, false_positive_rate: float) -> float:
    """Share of frauds above the score that this share of honest trips exceeds."""
    if not label.any():
        return float("nan")
    return float((score[label] > np.quantile(score[~label], 1 - false_positive_rate)).mean())


def precision_at(label: Bools, score: Array, k: int) -> float:
    """Share of frauds among the k highest scores."""
    return float(label[np.argsort(-score, kind="stable")[:k]].mean())


def bootstrap(
    label: Bools, statistic: Callable[[NDArray[np.intp]], float], rounds: int = 100, seed: int = 0
) -> Interval:
    """Percentile interval of a statistic of row indices; frauds and honest trips are drawn apart.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.
    """
    rng = np.random.default_rng(seed)
    frauds, honest = np.flatnonzero(label), np.flatnonzero(~label)
    values = [
        statistic(np.concatenate([rng.choice(frauds, len(frauds)), rng.choice(honest, len(honest))]))
        for _ in range(rounds)
    ]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return Interval(statistic(np.arange(len(label))), float(low), float(high))


def wilson(hits: int, n: int) -> Interval:
    """Share with its 95 % Wilson interval.

    Source: Wilson, JASA 22 (1927) 209-212.
    """
    if n == 0:
        return Interval(float("nan"), 0.0, 1.0)
    z, p = 1.96, hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(p, float(centre - half), float(centre + half))


def evaluate(label: Bools, score: Array, threshold: float, rounds: int = 100, seed: int = 0) -> dict[str, Any]:
    """Metrics of a detector, JSON-ready, each with its interval.

    Parameters
    ----------
    label : (n,), True where fraud was planted. score : (n,), higher is more abnormal. threshold : flags above it.
    """
    flagged = score > threshold

    def interval(statistic: Callable[[Bools, Array], float]) -> dict[str, float]:
        return bootstrap(label, lambda rows: statistic(label[rows], score[rows]), rounds, seed).to_json()

    out: dict[str, Any] = {
        "average_precision": interval(lambda y, s: float(average_precision_score(y, s))),
        "roc_auc": interval(lambda y, s: float(roc_auc_score(y, s))),
        "recall_at_fpr": {str(f): interval(partial(recall_at, false_positive_rate=f)) for f in OPERATING_POINTS},
        "precision_at_k": {
            str(k): round(precision_at(label, score, k), 4) for k in (100, 500, 1000) if k <= len(score)
        },
        "false_positive_rate": wilson(int(flagged[~label].sum()), int((~label).sum())).to_json(),
        "recall": wilson(int(flagged[label].sum()), int(label.sum())).to_json(),
        "precision": wilson(int((flagged & label).sum()), int(flagged.sum())).to_json(),
        "frauds": int(label.sum()),
        "honest": int((~label).sum()),
    }
    return out


def by_kind(kind: NDArray[np.str_], score: Array, threshold: float) -> dict[str, Any]:
    """Recall of each planted kind at the threshold, with interval, number planted, family and whether it is easy."""
    out: dict[str, Any] = {}
    for name in KINDS:
        mine = kind == name
        if mine.any():
            recall = wilson(int((score[mine] > threshold).sum()), int(mine.sum())).to_json()
            out[name] = {
                "recall": recall,
                "planted": int(mine.sum()),
                "family": KINDS[name].family,
                "easy": KINDS[name].easy,
            }
    return out


def choose_threshold(honest_score: Array, budget: float) -> float:
    """Score that the given share of honest validation trips exceeds."""
    return float(np.quantile(honest_score, 1 - budget))


def reasons_hit(
    reasons: Mapping[int, Sequence[Mapping[str, Any]]], changed: Mapping[str, Bools], rows: Sequence[int]
) -> float:
    """Share of flagged frauds whose first reason names a field that the fraud changed."""
    hits = [bool(changed[str(reasons[r][0]["field"])][r]) for r in rows if reasons.get(r)]
    return float(np.mean(hits)) if hits else float("nan")


FIVE: Final = ("trip_distance", "fare_amount", "duration_minutes", "fare_per_mile", "speed_mph")


def five_features(columns: Columns) -> Array:
    """The five features that this field usually shows, (n, 5), 0 where missing."""
    n = len(columns["trip_distance"])
    miles, fare = columns["trip_distance"].astype(np.float64), columns["fare_amount"].astype(np.float64)
    minutes = duration_minutes(columns, n)
    per_mile, speed = fare / np.maximum(miles, 0.1), miles / np.maximum(minutes / 60, 1 / 60)
    return np.nan_to_num(np.stack([miles, fare, minutes, per_mile, speed], axis=1))


def baseline_scores(train: Columns, test: Columns, seed: int) -> dict[str, Array]:
    """Scores on the test trips of what the model has to beat: isolation forest, and the five-feature autoencoder.

    Both are fitted on the training trips without labels.
    """
    rng = np.random.default_rng(seed)
    a, b = five_features(train), five_features(test)
    rows = rng.choice(len(a), min(len(a), 50_000), replace=False)
    scaler = StandardScaler().fit(a[rows])
    x, y = scaler.transform(a[rows]), scaler.transform(b)
    forest = IsolationForest(n_estimators=100, random_state=seed).fit(x)
    autoencoder = MLPRegressor((16, 3, 16), max_iter=15, early_stopping=True, random_state=seed).fit(x, x)
    error = ((autoencoder.predict(y) - y) ** 2).mean(axis=1)
    return {"isolation_forest": -forest.score_samples(y), "five_feature_autoencoder": error}
