"""First looks at trips: what one record says, what each number alone gives away, and what a change would do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fraudlib import features, fraud
from fraudlib.reasons import in_words
from fraudlib.schema import COLUMNS
from fraudlib.scoring import Scorer
from fraudlib.statistics import duration_minutes

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[np.generic]]

# What is added up to the total, as the TLC's data dictionary lists it.
CHARGES: Final = (
    "fare_amount",
    "extra",
    "mta_tax",
    "improvement_surcharge",
    "tolls_amount",
    "congestion_surcharge",
    "airport_fee",
    "cbd_congestion_fee",
    "tip_amount",
)


def record(columns: Columns, row: int) -> pd.DataFrame:
    """One trip, a line for each field that it has: value, unit and meaning."""
    held = [column for column in COLUMNS if column.name in columns]
    values = [columns[column.name][row] for column in held]
    shown = [
        str(value)[:16].replace("T", " ") if isinstance(value, np.datetime64) else f"{value:g}" for value in values
    ]
    lines = {
        "value": ["" if text in ("nan", "NaT") else text for text in shown],
        "unit": [column.unit for column in held],
        "meaning": [column.meaning for column in held],
    }
    return pd.DataFrame(lines, index=pd.Index([column.name for column in held], name="field"))


def receipt(columns: Columns, row: int) -> tuple[dict[str, float], float]:
    """Charges of one trip that are not zero, in USD, and the total that was charged."""
    amounts = {name: float(columns[name][row].astype(np.float64)) for name in CHARGES if name in columns}
    return {name: usd for name, usd in amounts.items() if usd and not np.isnan(usd)}, float(
        columns["total_amount"][row].astype(np.float64)
    )


def simple_numbers(columns: Columns) -> dict[str, Array]:
    """Numbers that a rule would look at, (n,) each; NaN where one cannot be had."""
    number = {c.name: columns[c.name].astype(np.float64) for c in COLUMNS if c.kind == "float" and c.name in columns}
    miles, fare, total = (number[name] for name in ("trip_distance", "fare_amount", "total_amount"))
    minutes = duration_minutes(columns, len(fare))
    charges = np.sum([np.nan_to_num(number[name]) for name in CHARGES if name in number], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "fare, USD": fare,
            "total, USD": total,
            "tip, USD": number["tip_amount"],
            "tolls, USD": number["tolls_amount"],
            "miles": miles,
            "minutes": minutes,
            "fare per mile, USD": np.where(miles > 0, fare / miles, np.nan),
            "miles per hour": np.where(minutes > 0, 60 * miles / minutes, np.nan),
            "tip over fare": np.where(fare > 0, number["tip_amount"] / fare, np.nan),
            "total less the sum of charges, USD": total - charges,
        }


def oddities(columns: Columns) -> pd.DataFrame:
    """The first trip of each habit that would trip a simple rule; a habit that no trip has is left out."""
    number = simple_numbers(columns)
    odd = {
        "no miles, yet a fare": (number["miles"] == 0) & (number["fare, USD"] > 10),
        "a negative total": number["total, USD"] < 0,
        "under a minute": (number["minutes"] < 1) & (number["fare, USD"] > 5),
        "a tip above the fare": number["tip over fare"] > 1,
    }
    rows = {name: int(np.flatnonzero(mask)[0]) for name, mask in odd.items() if mask.any()}
    shown = ("miles", "minutes", "fare, USD", "tip, USD", "total, USD")
    return pd.DataFrame({name: number[name][list(rows.values())] for name in shown}, index=pd.Index(list(rows)))


def strangest(columns: Columns, rows: NDArray[np.intp], why: Mapping[int, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """Some trips as an analyst is shown them: amounts in USD, miles, minutes, and the reasons in words.

    Parameters
    ----------
    rows : positions in `columns`, (k,), in the order shown. why : position -> reasons, as the scorer gives them.
    """
    trips = features.take(columns, rows)
    shown = {"pickup": trips["pickup_datetime"], "miles": trips["trip_distance"]}
    shown["minutes"] = duration_minutes(trips, len(rows))
    short = {"fare": "fare_amount", "tip": "tip_amount", "tolls": "tolls_amount", "total": "total_amount"}
    shown |= {name: trips[column] for name, column in {**short, "rate code": "rate_code_id"}.items()}
    words = ["; ".join(map(in_words, why.get(int(row), []))) for row in rows]
    return pd.DataFrame(shown).assign(reasons=words)


def single_rules(honest: Columns, frauds: Columns, kind: NDArray[np.str_], budget: float) -> pd.DataFrame:
    """What the best rule on one number finds of each kind: "flag what lies beyond either end".

    Parameters
    ----------
    honest : trips that set the two ends, so that `budget` of them lie beyond. frauds : planted trips, shape (m,) each.
    kind : name of each fraud's kind, (m,).

    Returns
    -------
    pandas.DataFrame
        A row for each kind, with the best number's name (`number`) and the share found (`recall`).
    """
    usual, odd = simple_numbers(honest), simple_numbers(frauds)
    beyond = {}
    for name, values in usual.items():
        low, high = np.nanquantile(values, [budget / 2, 1 - budget / 2])
        beyond[name] = (odd[name] < low) | (odd[name] > high)
    share = pd.DataFrame(beyond).groupby(kind).mean()
    return pd.DataFrame({"number": share.idxmax(axis=1), "recall": share.max(axis=1)})


def scaled(columns: Columns, row: int, field: str, factors: Array) -> dict[str, NDArray[np.generic]]:
    """Copies of one trip in which a field is scaled, (k,) each; a fare keeps to the meter's steps, the total follows.

    Parameters
    ----------
    field : name of a numeric column. factors : (k,).
    """
    trips = features.take(columns, np.full(len(factors), row))
    before = trips[field].astype(np.float64)
    wanted = before * factors
    trips[field] = np.where(
        factors == 1, before, fraud.snap(trips, wanted) if field == "fare_amount" else np.round(wanted, 2)
    )
    if field in CHARGES:
        trips["total_amount"] = trips["total_amount"].astype(np.float64) + trips[field].astype(np.float64) - before
    return trips


@dataclass(frozen=True)
class Scored:
    """Trips with their scores, to be looked at under one threshold or another.

    Attributes
    ----------
    columns : shape (n,) each. score : (n,). kind : what was planted, "" for nothing, (n,).
    """

    columns: dict[str, NDArray[np.generic]]
    score: Array
    kind: NDArray[np.str_]

    def flagged(self, threshold: float) -> tuple[float, float]:
        """Shares flagged at a threshold: of honest trips, of planted frauds."""
        over, planted = self.score > threshold, self.kind != ""
        return float(over[~planted].mean()), float(over[planted].mean())

    def nearest(self, threshold: float, n: int) -> pd.DataFrame:
        """The `n` trips that lie closest above a threshold: what an analyst would be shown last."""
        above = np.flatnonzero(self.score > threshold)
        rows = above[np.argsort(self.score[above])][:n]
        shown = {"score": self.score[rows], "planted": np.where(self.kind[rows] == "", "nothing", self.kind[rows])}
        names = ("trip_distance", "fare_amount", "tip_amount", "total_amount")
        shown |= {name: self.columns[name][rows] for name in names}
        minutes = duration_minutes(self.columns, len(self.score))[rows]
        return pd.DataFrame(shown | {"duration_minutes": minutes})


def scored(scorer: Scorer, honest: Columns, frauds: Columns, kind: NDArray[np.str_]) -> Scored:
    """Honest trips and planted frauds, in this order, scored together."""
    columns = features.concat([honest, frauds])
    blank = np.zeros(features.row_count(honest), dtype=kind.dtype)
    return Scored(columns, scorer.score(columns).anomaly_score, np.concatenate([blank, kind]))


def median_trip(columns: Columns, fields: Sequence[str] = ("trip_distance", "fare_amount")) -> int:
    """Row of the card-paid city trip that lies closest to the medians of `fields`."""
    plain = (
        (columns["payment_type"] == 1)
        & (columns["rate_code_id"] == 1)
        & (columns["total_amount"].astype(np.float64) > 0)
    )
    rows = np.flatnonzero(plain)
    values = np.array([columns[name][rows].astype(np.float64) for name in fields])
    middle = np.nanmedian(values, axis=1, keepdims=True)
    return int(rows[np.nanargmin(np.abs(values / middle - 1).sum(axis=0))])
