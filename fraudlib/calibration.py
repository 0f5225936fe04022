"""From raw surprises and logits to rarity: how seldom an honest trip shows as much, on the validation split."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fraudlib.errors import SchemaError

Array = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]

# Rarity is -log10 of the share of honest trips at least as extreme: 2 is one in a hundred, 3 one in a thousand.
_LEVELS: Final = np.concatenate([np.linspace(0.0, 0.9, 10), np.linspace(1.0, 3.5, 26)])


@dataclass(frozen=True)
class Rarity:
    """A monotone map from a raw value to its rarity.

    Attributes
    ----------
    knots : raw values, increasing, shape (k,).
    levels : rarity at the knots, increasing, shape (k,).
    slope : rarity per unit of log(1 + raw - last knot) beyond the last knot: the tail as a power law.
    """

    knots: Array
    levels: Array
    slope: float

    def __call__(self, raw: Floats) -> Array:
        """Rarity of raw values of any shape, >= 0, strictly increasing beyond the first knot."""
        return _continued(np.interp(raw, self.knots, self.levels), raw, self.knots[0], self.knots[-1], self.slope)

    def raw_at(self, rarity: float) -> float:
        """A raw value below which no rarity reaches this one."""
        if rarity <= self.levels[-1]:
            return float(self.knots[np.searchsorted(self.levels, rarity) - 1]) if rarity > self.levels[0] else -np.inf
        return float(self.knots[-1] + np.expm1((rarity - self.levels[-1]) / self.slope))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"knots": self.knots.tolist(), "levels": self.levels.tolist(), "slope": self.slope}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Rarity":
        """Inverse of `to_json`.

        Raises
        ------
        SchemaError
            If knots or levels are missing, not increasing, or of different length.
        """
        try:
            knots, levels = np.asarray(data["knots"], np.float64), np.asarray(data["levels"], np.float64)
            slope = float(data["slope"])
        except (KeyError, TypeError, ValueError) as err:
            raise SchemaError(f"calibration: expected knots, levels and slope, found {err!r}") from err
        if knots.shape != levels.shape or len(knots) < 2 or np.any(np.diff(knots) <= 0) or np.any(np.diff(levels) < 0):
            raise SchemaError("calibration: expected increasing knots and levels of one length")
        return cls(knots, levels, slope)


def _continued(inside: Array, raw: Floats, first: Array, last: Array, slope: Array | float) -> Array:
    """Rarity beyond the first and the last knot, from what interpolation gives between them."""
    over, below = np.log1p(np.maximum(raw - last, 0.0)), np.minimum(raw - first, 0.0)
    return np.asarray(inside + slope * over + 1e-3 * np.tanh(below / 10), dtype=np.float64)


def fit_rarity(raw: Floats) -> Rarity:
    """Rarity of a raw value among honest trips.

    Parameters
    ----------
    raw : array of shape (n,), validation values; larger is more extreme.
    """
    usable = min(3.5, np.log10(max(len(raw), 10)) - 1)  # a level needs ten trips beyond it
    levels = _LEVELS[usable >= _LEVELS]
    knots = np.quantile(raw, 1 - 10.0**-levels)
    keep = np.concatenate([[True], np.diff(knots) > 1e-9 * (1 + np.abs(knots[1:]))])
    # Of equal knots the last level counts: a value that a tenth of all trips share is as rare as the tenth.
    last = np.append(np.flatnonzero(keep)[1:], len(knots)) - 1
    knots, levels = knots[keep], levels[last]
    if len(knots) < 2:
        knots, levels = np.array([knots[0], knots[0] + 1.0]), np.array([levels[0], levels[0] + 1.0])
    excess = np.log1p(raw[raw > knots[-1]] - knots[-1])
    # Hill's estimator on the excesses: their mean log is the inverse of the tail's exponent.
    mean = max(float(excess.mean()) if len(excess) else 1.0, 0.05)
    return Rarity(knots, levels, float(np.clip(1 / (mean * np.log(10)), 0.05, 5.0)))


# A trip counts by its likeness to known fraud first. The second logit, of anything changed, and a single reading's
# surprise speak up where they are this much rarer: each of them is a chance more for an honest trip to be flagged.
ANYTHING: Final = 0.2
BACKSTOP: Final = 2.2  # some reading of eighteen is always a little odd
CAP: Final = 2.4  # beyond it they rise slowly: they flag, and do not push aside what looks like known fraud
BEYOND_CAP: Final = 0.25  # so that the very surprising is flagged at strict budgets as well


def _eased(rarity: Array) -> Array:
    return np.where(rarity > CAP, CAP + BEYOND_CAP * (rarity - CAP), rarity)


@dataclass(frozen=True)
class Calibration:
    """Rarity of each reading's surprise and of the head's logits.

    Attributes
    ----------
    readings : name of a reading -> rarity of its surprise.
    known, anything : rarity of the logits of a known fraud, and of anything changed.
    repeat : rarity of a trip that repeats an earlier one; 0 where it was not measured.
    """

    readings: dict[str, Rarity]
    known: Rarity
    anything: Rarity
    repeat: float = 0.0

    @cached_property
    def _rarities(self) -> tuple[Rarity, ...]:
        return tuple(self.readings.values())

    @cached_property
    def _ends(self) -> tuple[Array, Array, Array]:
        """First and last knot and the slope beyond of each reading, (R,) each."""
        first, last, slope = np.array([(r.knots[0], r.knots[-1], r.slope) for r in self._rarities]).T
        return first, last, slope

    @cached_property
    def _backstop_at(self) -> Array:
        """Surprise of each reading beyond which the backstop speaks up, (R,)."""
        return np.array([rarity.raw_at(BACKSTOP) for rarity in self._rarities])

    def rarities(self, surprise: Floats) -> Array:
        """Rarity of each reading's surprise; (n, R) to (n, R)."""
        inside = [np.interp(raw, r.knots, r.levels) for raw, r in zip(surprise.T, self._rarities, strict=True)]
        return _continued(np.array(inside).T, surprise, *self._ends)

    def by_head(self, logit: Floats) -> Array:
        """Rarity of the head's logits (n, 2): of the first, or of the second where that is far beyond it; (n,)."""
        return np.maximum(self.known(logit[:, 0]), _eased(self.anything(logit[:, 1]) - ANYTHING))

    def score(self, logit: Floats, surprise: Floats) -> Array:
        """Anomaly score, (n,): the head's rarity, or the most surprising reading's where that is far beyond it."""
        score = self.by_head(logit)
        odd = np.flatnonzero((surprise > self._backstop_at).any(axis=1))
        if len(odd):
            most = self.rarities(surprise[odd]).max(axis=1)
            score[odd] = np.maximum(score[odd], _eased(most - BACKSTOP))
        return score

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        readings = {name: rarity.to_json() for name, rarity in self.readings.items()}
        logits = {"known": self.known.to_json(), "anything": self.anything.to_json()}
        return {"readings": readings, **logits, "repeat": self.repeat}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Calibration":
        """Inverse of `to_json`; SchemaError where a part is missing."""
        try:
            readings = {name: Rarity.from_json(part) for name, part in data["readings"].items()}
            known, anything = (Rarity.from_json(data[name]) for name in ("known", "anything"))
            return cls(readings, known, anything, float(data["repeat"]))
        except (KeyError, TypeError, AttributeError, ValueError) as err:
            raise SchemaError(f"calibration: expected readings, known, anything and repeat, found {err!r}") from err


def fit(
    logit: Floats, surprise: Floats, readings: tuple[str, ...], repeated: NDArray[np.bool_] | None = None
) -> Calibration:
    """Calibration from honest validation trips.

    Parameters
    ----------
    logit : array of shape (n, 2). surprise : array of shape (n, R).
    readings : names of the R readings.
    repeated : (n,), which trips repeat an earlier one (`repeats.find`).
    """
    repeat = 0.0 if repeated is None else float(-np.log10((repeated.sum() + 1) / (len(repeated) + 1)))
    fitted = {name: fit_rarity(surprise[:, i]) for i, name in enumerate(readings)}
    return Calibration(fitted, fit_rarity(logit[:, 0]), fit_rarity(logit[:, 1]), repeat)
