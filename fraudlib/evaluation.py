"""Metrics with intervals: rankings, operating points, kinds of fraud, and what flags cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fraudlib.fraud import KINDS

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Columns = Mapping[str, NDArray[np.generic]]

OPERATING_POINTS: Final = (0.001, 0.005, 0.01, 0.031)  # false positive rates at which recall is reported
PREVALENCES: Final = (0.001, 0.005, 0.0125)  # shares of fraud among all trips
ALERTS: Final = (100, 500, 1000)  # lengths of an analyst's list


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

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


def choose_threshold(honest_score: Array, budget: float) -> float:
    """Score that the given share of honest validation trips exceeds."""
    return float(np.quantile(honest_score, 1 - budget))


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


@dataclass(frozen=True)
class Curve:
    """Rates after each distinct score, from the highest down, (m,) each.

    Attributes
    ----------
    score : the score that is still flagged there. recall, false_positive_rate, caught : shares so far of frauds,
        of honest trips, and of the frauds' dollars.
    """

    score: Array
    recall: Array
    false_positive_rate: Array
    caught: Array

    def precision(self, prevalence: float) -> Array:
        """Share of frauds among what is flagged, if this share of all trips were fraud."""
        true, false = prevalence * self.recall, (1 - prevalence) * self.false_positive_rate
        return np.asarray(true / np.maximum(true + false, 1e-300))

    def average_precision(self, prevalence: float) -> float:
        """Area under precision over recall, as a step function."""
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.precision(prevalence)))

    def roc_auc(self) -> float:
        """Chance that a fraud scores above an honest trip."""
        recall, false = np.append(0.0, self.recall), np.append(0.0, self.false_positive_rate)
        return float(np.trapezoid(recall, false))

    def within(self, budget: float) -> int:
        """Last position whose false positive rate is within the budget; -1 where none is."""
        return int(np.searchsorted(self.false_positive_rate, budget, side="right")) - 1


class Ranking:
    """Scores of honest trips and frauds, sorted once, so that a resample costs two cumulative sums.

    Frauds and honest trips keep their own totals: a prevalence is a weight at the end, and frauds of several plantings
    can be pooled over the same honest trips.

    Parameters
    ----------
    label : (n,), True where fraud. score : (n,), higher is more abnormal.
    loss_usd : (n,), what each fraud costs; 1 USD each where left out.

    Attributes
    ----------
    order : (n,), rows from the highest score down.
    """

    def __init__(self, label: Bools, score: Array, loss_usd: Array | None = None) -> None:
        self.order = order = np.argsort(-score, kind="stable")
        self._fraud = label[order]
        self._score = score[order]
        loss = np.ones(len(label)) if loss_usd is None else loss_usd[order]
        self._loss = np.where(self._fraud, loss, 0.0)
        self._ends = np.append(np.flatnonzero(np.diff(self._score)), len(score) - 1)
        self._frauds, self._honest = np.flatnonzero(self._fraud), np.flatnonzero(~self._fraud)

    def curve(self, times: NDArray[np.int64] | None = None) -> Curve:
        """Rates with each trip counted this many times, (n,) in sorted order; once each where left out."""
        weight = np.ones(len(self._score)) if times is None else times.astype(np.float64)
        fraud = np.cumsum(weight * self._fraud)
        honest = np.cumsum(weight) - fraud
        loss = np.cumsum(weight * self._loss)
        parts = (rates / max(float(rates[-1]), 1e-300) for rates in (fraud, honest, loss))
        recall, false, caught = (part[self._ends] for part in parts)
        return Curve(self._score[self._ends], recall, false, caught)

    def resample(self, rng: np.random.Generator) -> Curve:
        """Rates of one bootstrap draw; frauds and honest trips are drawn apart."""
        times = np.zeros(len(self._score), dtype=np.int64)
        for rows in (self._frauds, self._honest):
            times[rows] = np.bincount(rng.integers(len(rows), size=len(rows)), minlength=len(rows))
        return self.curve(times)


def _figures(curve: Curve, threshold: float, prevalence: float, honest: int) -> dict[str, float]:
    """Every ranking metric of one curve by a flat name."""
    out = {"average_precision": curve.average_precision(prevalence), "roc_auc": curve.roc_auc()}
    out |= {f"average_precision_at_prevalence/{p}": curve.average_precision(p) for p in PREVALENCES}
    for rate in OPERATING_POINTS:
        i = curve.within(rate)
        out[f"recall_at_fpr/{rate}"] = float(curve.recall[i]) if i >= 0 else 0.0
        out[f"dollars_caught_at_fpr/{rate}"] = float(curve.caught[i]) if i >= 0 else 0.0
    trips = honest / (1 - prevalence)
    precision = curve.precision(prevalence)
    listed = trips * (prevalence * curve.recall + (1 - prevalence) * curve.false_positive_rate)
    out |= {f"precision_at_k/{k}": float(np.interp(k, listed, precision)) for k in ALERTS if k <= honest}
    i = int(np.searchsorted(-curve.score, -threshold, side="left")) - 1
    out["precision"] = float(precision[i]) if i >= 0 else float("nan")
    out["dollars_caught"] = float(curve.caught[i]) if i >= 0 else 0.0
    return out


def evaluate(
    label: Bools,
    score: Array,
    threshold: float,
    rounds: int = 100,
    seed: int = 0,
    *,
    prevalence: float | None = None,
    loss_usd: Array | None = None,
) -> dict[str, Any]:
    """Metrics of a detector, JSON-ready, each with its 95 % interval.

    Parameters
    ----------
    label : (n,), True where fraud was planted. score : (n,), higher is more abnormal. threshold : flags above it.
    rounds : bootstrap draws.
    prevalence : share of fraud among all trips that the precisions stand for; that of the rows where left out.
    loss_usd : (n,), what each fraud costs.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13 (percentile interval).
    """
    frauds, honest = int(label.sum()), int((~label).sum())
    share = frauds / len(label) if prevalence is None else prevalence
    ranking, rng = Ranking(label, score, loss_usd), np.random.default_rng(seed)
    values = _figures(ranking.curve(), threshold, share, honest)
    draws = [_figures(ranking.resample(rng), threshold, share, honest) for _ in range(rounds)]
    out: dict[str, Any] = {}
    for name, value in values.items():
        drawn = np.array([draw[name] for draw in draws])
        # A detector that flags nothing has no precision in any draw.
        known = drawn[~np.isnan(drawn)]
        low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (value, value)
        group, _, key = name.partition("/")
        interval = Interval(value, float(low), float(high)).to_json()
        if key:
            out.setdefault(group, {})[key] = interval
        else:
            out[name] = interval
    flagged = score > threshold
    out["false_positive_rate"] = wilson(int(flagged[~label].sum()), honest).to_json()
    out["recall"] = wilson(int(flagged[label].sum()), frauds).to_json()
    return out | {"prevalence": round(share, 6), "frauds": frauds, "honest": honest}


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


def loss_usd(before: Columns, after: Columns, kind: NDArray[np.str_]) -> Array:
    """What each fraud takes, (n,), USD: all of a trip that never was, else what the total grew by; never below 0."""
    charged = np.nan_to_num(after["total_amount"].astype(np.float64))
    grown = charged - np.nan_to_num(before["total_amount"].astype(np.float64))
    never = np.isin(kind, [name for name, k in KINDS.items() if k.family in ("ghost", "repeat")])
    return np.where(kind == "", 0.0, np.maximum(np.where(never, charged, grown), 0.0))


def reasons_hit(
    reasons: Mapping[int, Sequence[Mapping[str, Any]]], changed: Mapping[str, Bools], rows: Sequence[int]
) -> Interval:
    """Share of flagged frauds whose first reason names a field that the fraud changed."""
    hits = [bool(changed[str(reasons[r][0]["field"])][r]) for r in rows if reasons.get(r)]
    return wilson(sum(hits), len(hits))


def drift(realised: Interval, budget: float, expected: Interval) -> dict[str, Any]:
    """Whether the realised false positive rate lies outside the interval that 03 promised, and how far from the budget.

    Parameters
    ----------
    realised : on the test period. budget : share of honest trips that may be flagged.
    expected : validation's rate with the interval for a week to come.

    Returns
    -------
    JSON-ready; `factor` is realised over budget, `over_expected` realised over validation's rate.
    """
    return {
        "budget": budget,
        "expected": expected.to_json(),
        "realised": realised.to_json(),
        "drifted": not expected.low <= realised.value <= expected.high,
        "factor": realised.value / budget,
        "over_expected": realised.value / max(expected.value, 1e-12),
    }


def easy_and_hard(kind: NDArray[np.str_], score: Array, threshold: float) -> dict[str, Interval]:
    """Recall at the threshold of the kinds that break an identity of the record, and of those that keep every one."""
    easy = np.isin(kind, [name for name, k in KINDS.items() if k.easy])
    groups = {"easy": easy, "hard": ~easy & (kind != "")}
    return {name: wilson(int((score[mine] > threshold).sum()), int(mine.sum())) for name, mine in groups.items()}


def side_by_side(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The headline metrics of several detectors as text, "value [low, high]"."""

    def text(part: Mapping[str, float]) -> str:
        return str(Interval(**part))

    return {
        name: {
            "average precision": text(m["average_precision"]),
            "ROC AUC": text(m["roc_auc"]),
            "recall at 1 % false positives": text(m["recall_at_fpr"]["0.01"]),
            "at its threshold: recall": text(m["recall"]),
            "precision": text(m["precision"]),
            "false positives": text(m["false_positive_rate"]),
            "dollars caught": text(m["dollars_caught"]),
        }
        for name, m in metrics.items()
    }
