"""Transactions to anomaly scores with reasons: what the worker, `fraudlib score` and the notebooks all call."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fraudlib import features
from fraudlib.calibration import Calibration
from fraudlib.errors import ServiceError
from fraudlib.features import CODE_FIELDS, DISTANCE_FLOOR, DURATION_FLOOR
from fraudlib.forward import Forward
from fraudlib.model import N_LOGITS, PREDICTED, READING_FIELDS, READINGS, FraudModel
from fraudlib.repeats import WINDOW_MINUTES
from fraudlib.statistics import Statistics, duration_minutes

Array = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]
Columns = Mapping[str, NDArray[np.generic]]
Reason = dict[str, Any]

CHUNK = 512  # rows per pass on a CPU: the first layer of all views stays in its cache
CHUNK_CUDA = 65_536
QUICK_ROWS = 16
MAX_REASONS = 3
REASON_KEYS = ("field", "observed", "expected", "surprise")
VOIDED = 1.0  # what one honest trip in ten reaches
MIN_RARITY = 1.0  # a field that one honest trip in ten surpasses is no reason


@dataclass(frozen=True)
class Raw:
    """What the model says before calibration; float32 or float64.

    Attributes
    ----------
    logit : (n, 2), of a known fraud and of anything changed.
    blame : (n, P), logit of each field being at fault, in the order of model.PREDICTED.
    surprise, expected : (n, R), in the order of model.READINGS.
    """

    logit: Floats
    blame: Floats
    surprise: Floats
    expected: Floats


@dataclass(frozen=True)
class Scores:
    """Scores of a batch.

    Attributes
    ----------
    anomaly_score : (n,), float64; rarity among honest trips (2 is one in a hundred). Higher is more abnormal.
    is_flagged : (n,), bool: anomaly_score above the threshold.
    reasons : row -> up to three {field, observed, expected, surprise}, flagged rows only.
    """

    anomaly_score: Array
    is_flagged: NDArray[np.bool_]
    reasons: dict[int, list[Reason]]


def pick_device(device: str) -> torch.device:
    """Device of a setting: "auto" takes a GPU where there is one.

    Raises
    ------
    ServiceError
        If CUDA is asked for and not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ServiceError(f"FRAUDLIB_DEVICE={device}: no CUDA device is visible here; set it to auto or cpu")
    return torch.device(device)


def limit_threads(threads: int) -> bool:
    """Let PyTorch and numpy use so many threads; False where numpy's stay as many as they were.

    A machine that has little more than PyTorch and numpy can set them by OPENBLAS_NUM_THREADS.
    """
    torch.set_num_threads(threads)
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return False
    threadpool_limits(threads, "blas")
    return True


@torch.inference_mode()
def raw_scores(model: FraudModel, x: NDArray[np.float32], device: torch.device | None = None) -> Raw:
    """Logits, surprises and expectations of features (n, F), in chunks."""
    device = device or torch.device("cpu")
    logits, surprises, expected = [], [], []
    for part in torch.from_numpy(x).to(device).split(CHUNK if device.type == "cpu" else CHUNK_CUDA):
        logit, s = model(part)
        logits.append(logit)
        surprises.append(s.surprise)
        expected.append(s.expected)
    if not logits:
        empty = np.zeros((0, len(READINGS)))
        return Raw(np.zeros((0, N_LOGITS)), np.zeros((0, len(PREDICTED))), empty, empty)

    def join(parts: list[torch.Tensor]) -> Array:
        return np.asarray(torch.cat(parts).double().cpu().numpy())

    return _raw(join(logits), join(surprises), join(expected))


def _raw(out: Floats, surprise: Floats, expected: Floats) -> Raw:
    return Raw(out[:, :N_LOGITS], out[:, N_LOGITS:], surprise, expected)


class Scorer:
    """A loaded bundle, ready to score.

    Parameters
    ----------
    bundle_id : name of the bundle. model, statistics, calibration, threshold : its parts.
    device : torch device that scores. block : score above which an alert is severe, None where the bundle has none.
    """

    def __init__(
        self,
        bundle_id: str,
        model: FraudModel,
        statistics: Statistics,
        calibration: Calibration,
        threshold: float,
        device: str = "cpu",
        block: float | None = None,
    ) -> None:
        self.bundle_id = bundle_id
        self.device = pick_device(device)
        self.model = model.eval().to(self.device)
        self._forward = Forward(self.model) if self.device.type == "cpu" else None
        self.statistics = statistics
        self.calibration = calibration
        self.threshold, self.block = threshold, block

    @property
    def quick_rows(self) -> int:
        """Rows that are scored within about two milliseconds, without a device or a library that could hang."""
        return QUICK_ROWS if self._forward is not None else 0

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", threads: int = 1, verify_key: Path | None = None) -> "Scorer":
        """Scorer of the bundle in `folder`, verified first; with a public key in `verify_key`, its signature too.

        Raises
        ------
        BundleError
            If the bundle is incomplete, altered, not signed as asked, or does not rescore its golden rows.
        """
        from fraudlib import bundle

        limit_threads(threads)
        return bundle.load(folder, device, verify_key).scorer

    def score(self, columns: Columns) -> Scores:
        """Score every row of the columns, shape (n,) each; missing columns are missing fields."""
        x = features.by_feature(columns, self.statistics)
        raw = self.raw(x)
        score = self.calibration.score(raw.logit, raw.surprise)
        flagged = score > self.threshold
        rows = np.flatnonzero(flagged)
        return Scores(score, flagged, self._reasons(columns, x[:, rows].T, raw, rows) if len(rows) else {})

    def raw(self, x: NDArray[np.float32]) -> Raw:
        """What the model says of features (F, n), from `features.by_feature`; on a CPU in float32."""
        n = x.shape[1]
        if self._forward is None or not n:
            return raw_scores(self.model, np.ascontiguousarray(x.T), self.device)
        if n <= CHUNK:
            return _raw(*(part.T for part in self._forward(x)))
        parts = [self._forward(x[:, start : start + CHUNK]) for start in range(0, n, CHUNK)]
        return _raw(*(np.concatenate(each, axis=1).T for each in zip(*parts, strict=True)))

    def with_repeats(self, scores: Scores, minutes: Array) -> Scores:
        """The same scores, with trips that repeat an earlier one at least as high as such a trip is rare.

        Parameters
        ----------
        minutes : (n,), since the trip that each one repeats, NaN where none (`repeats.find`).
        """
        rows = np.flatnonzero(~np.isnan(minutes))
        score = scores.anomaly_score.copy()
        score[rows] = np.maximum(score[rows], self.calibration.repeat)
        flagged = score > self.threshold
        reasons = dict(scores.reasons)
        for row in rows[flagged[rows]].tolist():
            repeat = {
                "field": "pickup_datetime",
                "observed": round(float(minutes[row]), 2),
                "expected": WINDOW_MINUTES,
                "surprise": round(self.calibration.repeat, 2),
            }
            reasons[row] = [repeat, *reasons.get(row, [])][:MAX_REASONS]
        return Scores(score, flagged, reasons)

    def without_voids(self, scores: Scores, voided: NDArray[np.bool_]) -> Scores:
        """The same scores, with charges that were taken back, and their refunds, at no more than `VOIDED`.

        Parameters
        ----------
        voided : (n,), which those are (`repeats.voided`).
        """
        score = np.where(voided, np.minimum(scores.anomaly_score, VOIDED), scores.anomaly_score)
        flagged = score > self.threshold
        return Scores(score, flagged, {row: told for row, told in scores.reasons.items() if flagged[row]})

    def _reasons(
        self, columns: Columns, x: NDArray[np.float32], raw: Raw, rows: NDArray[np.intp]
    ) -> dict[int, list[Reason]]:
        """Reasons of some rows, given their features (k, F)."""
        part = features.take(columns, rows)
        rarities = self.calibration.rarities(raw.surprise[rows])
        rarity, expected_as = _strongest(rarities, raw.expected[rows].astype(np.float64))
        observed = _observed(part, len(rows))
        expected = _expected(expected_as, observed, x, features.usd_per_mile(part, self.statistics))
        seen, usual = np.stack(observed, axis=1), np.stack(expected, axis=1)
        # A field that is as expected explains nothing, so it comes last, however much the head blames it.
        as_expected = np.abs(seen - usual) < np.maximum(0.02 * np.abs(seen), 0.05)
        order = np.argsort(-(raw.blame[rows] + 0.25 * rarity - 1e3 * as_expected), axis=1)
        missing, weak = np.isnan(seen) | np.isnan(usual), (rarity < MIN_RARITY) | as_expected
        missing, weak = np.take_along_axis(missing, order, 1), np.take_along_axis(weak, order, 1)
        first = ~missing & (np.cumsum(~missing, axis=1) == 1)
        told = first | ~(
            missing | weak
        )  # the first is told even where it is weak: a flag without a reason helps nobody
        told &= np.cumsum(told, axis=1) <= MAX_REASONS
        at, rank = np.nonzero(told)
        fields = order[at, rank]
        numbers = (np.round(part[at, fields], 2).tolist() for part in (seen, usual, rarity))
        out: dict[int, list[Reason]] = {row: [] for row in rows.tolist()}
        for row, field, *values in zip(rows[at].tolist(), fields.tolist(), *numbers, strict=True):
            out[row].append(dict(zip(REASON_KEYS, (PREDICTED[field], *values), strict=True)))
        return out


def _strongest(rarity: Array, expected: Array) -> tuple[Array, Array]:
    """Of each field's readings the rarest and what it expected: (n, R) to (n, P) each."""
    at = _OF_FIELD[np.arange(len(PREDICTED)), rarity[:, _OF_FIELD].argmax(axis=2)]
    return np.take_along_axis(rarity, at, 1), np.take_along_axis(expected, at, 1)


def _readings_of_fields() -> NDArray[np.int64]:
    """Positions of each field's readings, (P, most of a field), the first one again where a field has fewer."""
    fields = np.asarray(READING_FIELDS)
    mine = [np.flatnonzero(fields == p) for p in range(len(PREDICTED))]
    most = max(map(len, mine))
    return np.array([np.append(at, np.full(most - len(at), at[0])) for at in mine])


_OF_FIELD = _readings_of_fields()


def _observed(columns: Columns, n: int) -> list[Array]:
    """Observed value of each predicted field, in its own unit; NaN where missing."""

    def number(name: str) -> Array:
        values = columns.get(name)
        return np.full(n, np.nan) if values is None else values.astype(np.float64)

    return [duration_minutes(columns, n) if f == "duration_minutes" else number(f) for f in PREDICTED]


def _expected(expected: Array, observed: list[Array], x: NDArray[np.float32], per_mile: Array) -> list[Array]:
    """Expected value of each predicted field in its own unit, from the expected target feature, (n, P)."""
    out: list[Array] = []
    for p, field in enumerate(PREDICTED):
        e = expected[:, p]
        if field == "trip_distance":
            out.append(np.maximum(np.exp(e) - DISTANCE_FLOOR, 0.0))
        elif field == "duration_minutes":
            out.append(np.maximum(np.exp(e) - DURATION_FLOOR, 0.0))
        elif field in CODE_FIELDS:
            out.append(np.asarray(CODE_FIELDS[field], dtype=np.float64)[e.astype(np.int64)])
        else:
            out.append(observed[p] + _difference(p, e, x[:, p].astype(np.float64), per_mile))
            if field != "total_amount":
                # The spread around zero is no refund: an amount that is not negative is not expected to be.
                out[p] = np.where(observed[p] >= 0, np.maximum(out[p], 0.0), out[p])
    return out


def _difference(p: int, expected: Array, seen: Array, per_mile: Array) -> Array:
    """Expected less observed, USD, from the target feature of one amount: what it leaves out is the same in both."""
    if features.TARGETS[p].endswith("_usd"):
        return expected - seen
    usd = features.signed_exp(expected) - features.signed_exp(seen)
    return usd * per_mile if PREDICTED[p] == "fare_amount" else usd
