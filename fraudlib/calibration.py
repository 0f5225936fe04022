"""From raw surprises and logits to rarity: how seldom an honest trip shows as much, on the validation split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fraudlib.errors import SchemaError

Array = NDArray[np.float64]

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

    def __call__(self, raw: Array) -> Array:
        """Rarity of raw values of any shape, >= 0, strictly increasing beyond the first knot."""
        inside = np.interp(raw, self.knots, self.levels)
        over = np.log1p(np.maximum(raw - self.knots[-1], 0.0))
        below = np.minimum(raw - self.knots[0], 0.0)
        return np.asarray(inside + self.slope * over + 1e-3 * np.tanh(below / 10), dtype=np.float64)

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


def fit_rarity(raw: Array) -> Rarity:
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


@dataclass(frozen=True)
class Calibration:
    """Rarity of each field's surprise and of the head's logit.

    Attributes
    ----------
    fields : predicted field -> rarity of its surprise.
    head : rarity of the logit.
    backstop : what a field's rarity must exceed the head's by before it counts instead of it.
    """

    fields: dict[str, Rarity]
    head: Rarity
    backstop: float

    def rarities(self, surprise: Array) -> Array:
        """Rarity of each field's surprise; (n, P) to (n, P)."""
        columns = [rarity(surprise[:, i]) for i, rarity in enumerate(self.fields.values())]
        return np.stack(columns, axis=1)

    def score(self, logit: Array, surprise: Array) -> Array:
        """Anomaly score, (n,): the head's rarity, or the most surprising field's where that is far beyond it."""
        score = self.head(logit)
        for i, rarity in enumerate(self.fields.values()):
            score = np.maximum(score, np.minimum(rarity(surprise[:, i]) - self.backstop, BACKSTOP_CAP))
        return score

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        fields = {name: rarity.to_json() for name, rarity in self.fields.items()}
        return {"fields": fields, "head": self.head.to_json(), "backstop": self.backstop}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Calibration":
        """Inverse of `to_json`; SchemaError where a part is missing."""
        try:
            fields = {name: Rarity.from_json(part) for name, part in data["fields"].items()}
            return cls(fields, Rarity.from_json(data["head"]), float(data["backstop"]))
        except (KeyError, TypeError, AttributeError, ValueError) as err:
            raise SchemaError(f"calibration: expected fields, head and backstop, found {err!r}") from err


# A trip is flagged by one field alone where that field is this much rarer than the budget asks of the head: some field
# of a dozen is always a little odd.
BACKSTOP: Final = 2.2
BACKSTOP_CAP: Final = 2.5  # it flags, but does not push aside what the head is sure of


def fit(logit: Array, surprise: Array, fields: tuple[str, ...], backstop: float = BACKSTOP) -> Calibration:
    """Calibration from honest validation trips.

    Parameters
    ----------
    logit : array of shape (n,), float64. surprise : array of shape (n, P), float64.
    fields : names of the P predicted fields.
    """
    return Calibration({f: fit_rarity(surprise[:, i]) for i, f in enumerate(fields)}, fit_rarity(logit), backstop)
