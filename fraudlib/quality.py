"""What the records look like: shares of the habits that real months are known for."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fraudlib import tariff
from fraudlib.features import NULL_BLOCK
from fraudlib.statistics import Statistics, duration_minutes

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[np.generic]]


def missing(columns: Columns) -> dict[str, float]:
    """Share of rows without a value, by column."""
    return {
        name: float((np.isnat(v) if v.dtype.kind == "M" else np.isnan(v.astype(np.float64))).mean())
        for name, v in columns.items()
    }


def habits(columns: Columns) -> dict[str, float]:
    """Share of rows that show each habit; what honest records do is context, not suspicion."""
    minutes = duration_minutes(columns, len(columns["fare_amount"]))
    miles, total = _number(columns, "trip_distance"), _number(columns, "total_amount")
    tip, rate, payment = (_number(columns, name) for name in ("tip_amount", "rate_code_id", "payment_type"))
    metered = (rate == 1) & (miles > 0) & (minutes > 0) & (minutes < 20 * 60)
    below, above = _meter(columns, miles, minutes)
    fare = _number(columns, "fare_amount")
    return {
        "the block of codes is blank": _share(np.all([np.isnan(_number(columns, c)) for c in NULL_BLOCK], axis=0)),
        "total below zero (voids)": _share(total < 0),
        "no miles": _share(miles <= 0),
        "under a minute": _share(minutes < 1),
        "over twenty hours": _share(minutes > 20 * 60),
        "rate code 5 (agreed fare)": _share(rate == 5),
        "rate code 2 (airport flat fare)": _share(rate == 2),
        "paid by card": _share(payment == 1),
        "tip above the fare": _share((tip > fare) & (tip > 0)),
        "toll paid": _share(_number(columns, "tolls_amount") > 0),
        "of metered trips: fare below the meter's least": _share((fare < below - 1)[metered]),
        "of metered trips: fare above the meter's most": _share((fare > above + 1)[metered]),
    }


def unseen(columns: Columns, statistics: Statistics) -> dict[str, float]:
    """Share of rows whose zones, or whose pair of zones, training never saw, or too seldom to know a usual distance."""
    zones = [_number(columns, name) for name in ("pickup_location_id", "dropoff_location_id")]
    known = np.isfinite(statistics.zones[:, 0])
    new = [~known[np.nan_to_num(z).clip(0, len(known) - 1).astype(np.int64)] for z in zones]
    counts = statistics.pairs(*zones)["count_log"]
    return {
        "a zone never seen": _share(np.asarray((new[0] | new[1]) & ~np.isnan(counts))),
        "a pair seldom or never seen": _share(counts == 0),
    }


def _meter(columns: Columns, miles: Array, minutes: Array) -> tuple[Array, Array]:
    index = tariff.tariff_index(columns["pickup_datetime"].astype("datetime64[us]"))
    base, per_mile, per_minute = (tariff.rate(name, index) for name in ("base", "per_mile", "per_minute"))
    low = base + per_mile * miles
    return low, low + per_minute * minutes


def _number(columns: Columns, name: str) -> Array:
    return columns[name].astype(np.float64, copy=False)


def _share(condition: NDArray[np.bool_]) -> float:
    return float(condition.mean()) if len(condition) else 0.0
