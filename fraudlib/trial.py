"""Frauds of several plantings, pooled, to be set against the honest trips of one period."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fraudlib import features, fraud
from fraudlib.evaluation import Array, Bools, Columns, loss_usd


@dataclass(frozen=True)
class Trial:
    """Planted frauds alone.

    Attributes
    ----------
    columns : the fraudulent trips, shape (m,) each. kind : name of each one's kind, (m,).
    changed : field -> True where the planting changed it, (m,) each. loss_usd : what each takes, (m,), USD.
    """

    columns: dict[str, NDArray[np.generic]]
    kind: NDArray[np.str_]
    changed: dict[str, Bools]
    loss_usd: Array


def plant(columns: Columns, share: float, rounds: int, seed: int, kinds: Sequence[str] = fraud.LISTED) -> Trial:
    """Plant into copies of the trips several times over, each time with another seed, and keep the frauds.

    Parameters
    ----------
    columns : honest trips, shape (n,) each; not changed. share : share of them planted into, each round.
    kinds : names from fraud.KINDS, each planted equally often as far as the trips allow.
    """
    parts = []
    for r in range(rounds):
        planted = fraud.plant(columns, share, seed + r, kinds)
        rows = np.flatnonzero(planted.label)
        after, kind = features.take(planted.columns, rows), planted.kind[rows]
        loss = loss_usd(features.take(columns, rows), after, kind)
        parts.append(Trial(after, kind, {f: hit[rows] for f, hit in planted.changed.items()}, loss))
    return Trial(
        features.concat([p.columns for p in parts]),
        np.concatenate([p.kind for p in parts]),
        {field: np.concatenate([p.changed[field] for p in parts]) for field in parts[0].changed},
        np.concatenate([p.loss_usd for p in parts]),
    )


def sent_twice(columns: Columns, share: float, seed: int) -> tuple[dict[str, NDArray[np.generic]], Bools]:
    """Trips with some of them sent once more, seconds later and up to 5 % dearer; and which ones are those.

    Parameters
    ----------
    columns : honest trips, shape (n,) each; not changed. share : share of them that is sent again.
    """
    kind, rng = fraud.KINDS["resubmitted"], np.random.default_rng(seed)
    rows = np.flatnonzero(kind.eligible(columns))
    again = features.take(columns, np.sort(rng.choice(rows, round(share * len(rows)), replace=False)))
    kind.apply(again, rng)
    everything = features.concat([columns, again])
    return everything, np.arange(features.row_count(everything)) >= features.row_count(columns)
