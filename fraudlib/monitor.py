"""What became of the trips since training: drift of features and scores, alerts and labels, slice by slice of time."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fraudlib import features, splits, tariff
from fraudlib.bundle import Bundle
from fraudlib.drift import Drift
from fraudlib.errors import DataError, ParameterError
from fraudlib.evaluation import wilson
from fraudlib.verdict import MAX_OVER_BUDGET, Check

Columns = Mapping[str, NDArray[Any]]

UNITS: Final = {"day": "D", "hour": "h", "minute": "m"}
SCORE: Final = "anomaly_score"
LITTLE, MUCH = 0.1, 0.25  # Siddiqi's bounds of the stability index (`fraudlib.drift`)
FEWEST_LABELS: Final = 30  # below, the interval of a share is wider than what is to be judged
KEEP, RETRAIN = "keep", "retrain"
SCORE_EDGES: Final = np.linspace(0, 8, 321)  # scores are rarities: 8 is one trip in a hundred million
# The calendar of a short window is no drift: these are what time makes of them.
CALENDAR: Final = ("hour_sin", "hour_cos", "hour_sin2", "hour_cos2", "weekend", "peak_hours", "night_hours")


@dataclass(frozen=True)
class Part:
    """Scored trips.

    Attributes
    ----------
    columns : trips, (n,) each.
    anomaly_score, is_flagged : (n,).
    when : (n,), datetime64: pickup in files, time of the score on topics.
    reasons : of each flagged trip, the first reason in words.
    ids : transaction ids, (n,), empty where trips have none.
    """

    columns: Columns
    anomaly_score: NDArray[np.float64]
    is_flagged: NDArray[np.bool_]
    when: NDArray[np.datetime64]
    reasons: Sequence[str]
    ids: Sequence[str] = ()


@dataclass
class Slice:
    """Trips, alerts and drift of one part of time."""

    drift: Drift
    rows: int = 0
    flagged: int = 0


@dataclass
class Watch:
    """Counts of scored trips against a bundle's reference; holds no trips.

    Attributes
    ----------
    bundle : whose reference counts. unit : length of a slice, of UNITS.
    """

    bundle: Bundle
    unit: str
    slices: dict[np.datetime64, Slice] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    alerts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ParameterError(f"unit: expected one of {', '.join(UNITS)}, found {self.unit!r}; correct it")
        self.whole = Slice(self._drift())
        self.scores = np.zeros(len(SCORE_EDGES) + 1, dtype=np.int64)
        self.newest = np.datetime64("NaT", "us")

    def _drift(self) -> Drift:
        names = (*features.FEATURE_NAMES, SCORE)
        return Drift(self.bundle.reference, names, window_seconds=np.inf, clock=lambda: 0.0)

    def add(self, part: Part) -> None:
        """Count trips; those without a time count to the whole alone."""
        x = features.build(part.columns, self.bundle.scorer.statistics)
        values = np.column_stack([x, part.anomaly_score])
        self._count(self.whole, values, part.is_flagged)
        self.scores += np.bincount(np.searchsorted(SCORE_EDGES, part.anomaly_score), minlength=len(self.scores))
        self.reasons.update(reason.split(" ", 1)[0] for reason in part.reasons)
        self.alerts.update(name for name, flagged in zip(part.ids, part.is_flagged, strict=False) if flagged)
        starts = part.when.astype(f"datetime64[{UNITS[self.unit]}]")
        for start in np.unique(starts[~np.isnat(starts)]):
            mine = starts == start
            self._count(self.slices.setdefault(start, Slice(self._drift())), values[mine], part.is_flagged[mine])
        if self.slices:
            least = 0.02 * self._median_rows()  # fewer come from reset clocks
            self.newest = np.array([start for start, of in self.slices.items() if of.rows > least]).max()

    def _median_rows(self) -> float:
        return float(np.median([part.rows for part in self.slices.values()]))

    @staticmethod
    def _count(part: Slice, values: NDArray[np.float64], flagged: NDArray[np.bool_]) -> None:
        part.drift.add(values)
        part.rows += len(values)
        part.flagged += int(flagged.sum())

    def moved(self) -> pd.DataFrame:
        """Stability index and largest gap of every feature and the score, the most moved first; see `Drift`.

        Raises
        ------
        DataError
            If there are too few trips to tell drift from chance.
        """
        index, gap = self.whole.drift.index(), self.whole.drift.gap()
        if not index:
            raise DataError(f"expected at least 500 scored trips to tell drift from chance, found {self.whole.rows}")
        frame = pd.DataFrame({"stability index": index, "largest gap": gap})
        return frame.sort_values("stability index", ascending=False)

    def over_time(self, names: Sequence[str]) -> pd.DataFrame:
        """Stability index by slice (rows) and name; slices with too few trips are left out."""
        found = {start: part.drift.index() for start, part in sorted(self.slices.items())}
        return pd.DataFrame({start: index for start, index in found.items() if index}).T.reindex(columns=list(names))

    def volume(self) -> pd.DataFrame:
        """Trips and alerts by slice, with the share flagged and its 95 % interval; without those of reset clocks."""
        least = 0.02 * self._median_rows() if self.slices else 0
        lines = []
        for start, part in sorted(self.slices.items()):
            if part.rows > least:
                share = wilson(part.flagged, part.rows)
                lines.append((start, part.rows, part.flagged, share.value, share.low, share.high))
        return pd.DataFrame(lines, columns=["start", "trips", "alerts", "share", "low", "high"]).set_index("start")


def watch(bundle: Bundle, parts: Iterable[Part], unit: str) -> Watch:
    """Watch that has counted all parts.

    Raises
    ------
    DataError
        If there is no scored trip.
    """
    found = Watch(bundle, unit)
    for part in parts:
        found.add(part)
    if not found.whole.rows:
        raise DataError("expected scored trips, found none; score a month or send trips to the stack first")
    return found


def checks(found: Watch, verdicts: Mapping[str, str], min_precision: float, max_age_days: int) -> list[Check]:
    """What speaks for a retraining, one line for each sign.

    Parameters
    ----------
    verdicts : transaction id -> "fraud" or "honest".
    min_precision : share of the judged alerts that should be fraud.
    max_age_days : days between the last trip that was trained on and the newest that was scored.
    """
    return [*_drifted(found), _alerts(found), _labels(found, verdicts, min_precision), *_age(found, max_age_days)]


def _check(name: str, required: str, found: str, fails: bool) -> Check:
    return Check(name, required, found, RETRAIN if fails else KEEP)


def _drifted(found: Watch) -> Iterator[Check]:
    index = found.moved()["stability index"]
    of_features = index.drop([SCORE, *CALENDAR], errors="ignore")
    worst = str(of_features.idxmax())
    many = int((of_features > MUCH).sum())
    text = f"{worst} {of_features[worst]:.2f}" + (f" and {many - 1} more above" if many > 1 else "")
    yield _check("features", f"no stability index above {MUCH}", text, many > 0)
    yield _check("scores", f"stability index up to {LITTLE}", f"{index[SCORE]:.3f}", index[SCORE] > LITTLE)


def _alerts(found: Watch) -> Check:
    budget = float(found.bundle.manifest.threshold["false_positive_budget"])
    share = wilson(found.whole.flagged, found.whole.rows)
    required = f"at most {MAX_OVER_BUDGET:g} times the budget of {budget:.1%}"
    return _check("alerts", required, f"{share.value:.2%} of trips", share.low > MAX_OVER_BUDGET * budget)


def _labels(found: Watch, verdicts: Mapping[str, str], least: float) -> Check:
    judged = [verdicts[name] for name in found.alerts if name in verdicts]
    frauds = judged.count("fraud")
    text = f"{frauds} of {len(judged)}" + ("" if len(judged) >= FEWEST_LABELS else ", too few to say")
    fails = len(judged) >= FEWEST_LABELS and wilson(frauds, len(judged)).high < least
    return _check("judged alerts", f"at least {least:.0%} fraud", text, fails)


def _age(found: Watch, most: int) -> Iterator[Check]:
    """Days since the training data ended, and whether another tariff is in force."""
    newest = found.newest.astype("datetime64[D]")
    trained = splits.months_of(str(found.bundle.manifest.parameters["train_period"]))[-1]
    end = (np.datetime64(trained, "M") + 1).astype("datetime64[D]")
    days = int((newest - end).astype(np.int64)) if not np.isnat(newest) else 0
    yield _check("age", f"at most {most} days after {trained}", f"{days} days", days > most)
    then, now = found.bundle.scorer.statistics.default_tariff, int(tariff.tariff_index(np.array([found.newest]))[0])
    text = "another one is in force" if now != then else "the same"
    yield _check("tariff", "that of the training months", text, now != then)


def retraining(data_dir: Path, service: str, months: Sequence[str]) -> str:
    """Command that retrains on the newest months that are there; the sample's where there are too few."""
    if len(months) < 3:
        return "python -m pipelines retrain"
    *train, valid, test = months[-5:]
    period = train[0] if len(train) == 1 else f"{train[0]}:{train[-1]}"
    given = {"data_dir": data_dir, "service": service, "train_months": period, "valid_month": valid, "test_month": test}
    return "python -m pipelines retrain " + " ".join(f"-p {name}={value}" for name, value in given.items())
