"""What trips tell of each other: a ride submitted again, seconds later and a little dearer, and a charge taken back.

No single record shows this, so it is looked for where many trips lie side by side, as in a file.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fraudlib.features import concat, row_count
from fraudlib.statistics import duration_minutes

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[np.generic]]

WINDOW_MINUTES: Final = 10.0  # later than this the same ride may well be driven again
LEAST_MILES: Final = 0.3  # below it rides are alike by chance
CLOSE: Final = 0.02  # distance and duration may differ by this share: 0.01 miles and two seconds are rounding
DEAREST: Final = 1.05  # times the first fare, and half a unit of the meter, which shows whole units
HALF_UNIT_USD: Final = 0.35
NEIGHBOURS: Final = 3  # later trips between the same zones that are compared with each
_NEEDED: Final = ("pickup_datetime", "pickup_location_id", "dropoff_location_id", "trip_distance", "fare_amount")


def find(columns: Columns) -> Array:
    """Minutes since the trip that each one repeats, (n,); NaN where it repeats none.

    An identical pickup time is the same record delivered twice, which is no fraud and not counted.

    Parameters
    ----------
    columns : trips, shape (n,) each; none repeats another where zones, times, miles or fares are missing.
    """
    n = row_count(columns)
    out = np.full(n, np.nan)
    if n < 2 or any(name not in columns for name in _NEEDED):
        return out
    pickup, dropoff, miles, fare = (columns[name].astype(np.float64) for name in _NEEDED[1:])
    time = columns["pickup_datetime"].astype("datetime64[s]")
    rows = np.flatnonzero(~(np.isnan(pickup) | np.isnan(dropoff) | np.isnat(time)) & (miles > LEAST_MILES) & (fare > 0))
    second = time[rows].astype(np.int64)
    zones = pickup[rows].astype(np.int64) * 1000 + dropoff[rows].astype(np.int64)
    # Zones above, seconds below: sorted by one number, rides between the same zones follow each other in time.
    order = np.argsort(zones * 2**40 + (second - second.min(initial=0)))
    minutes, miles, fare = duration_minutes(columns, n)[rows], miles[rows], fare[rows]
    for lag in range(1, NEIGHBOURS + 1):
        first, again = order[:-lag], order[lag:]
        gap = second[again] - second[first]
        near = np.flatnonzero((zones[first] == zones[again]) & (gap > 0) & (gap <= WINDOW_MINUTES * 60))
        first, again, gap = first[near], again[near], gap[near]
        with np.errstate(invalid="ignore"):
            same = np.abs(miles[again] - miles[first]) <= np.maximum(CLOSE * miles[first], 0.011)
            same &= np.abs(minutes[again] - minutes[first]) <= np.maximum(CLOSE * minutes[first], 2 / 60)
            same &= (fare[again] >= fare[first]) & (fare[again] <= DEAREST * fare[first] + HALF_UNIT_USD)
        found = rows[again[same]]
        out[found] = np.fmin(out[found], gap[same] / 60)
    return out


def voided(columns: Columns) -> NDArray[np.bool_]:
    """Which trips are a charge and its refund, (n,): the same ride to the second, with fare and total negated.

    Nobody paid anything for either in the end, so neither is worth an alert; a refund that mirrors no charge is.
    """
    n = row_count(columns)
    out = np.zeros(n, dtype=bool)
    if n < 2 or any(name not in columns for name in (*_NEEDED, "total_amount")):
        return out
    refund = np.flatnonzero(columns["fare_amount"].astype(np.float64) < 0)
    pickup = columns["pickup_datetime"].astype("datetime64[s]").astype(np.int64)
    rows = np.flatnonzero(np.isin(pickup, pickup[refund]))  # refunds are few, and so is what can belong to them
    second = pickup[rows]
    keys = [columns[name].astype(np.float64)[rows] for name in (*_NEEDED[1:3], "fare_amount", "total_amount")]
    # Equal sizes lie next to each other, the refund before the charge: below zero before above.
    order = np.lexsort((keys[2], np.abs(keys[3]), np.abs(keys[2]), second, keys[1], keys[0]))
    first, again = order[:-1], order[1:]
    same = (second[first] == second[again]) & (keys[2][first] < 0)
    for key, sign in zip(keys, (1, 1, -1, -1), strict=True):
        same &= key[first] == sign * key[again]
    out[rows[first[same]]] = out[rows[again[same]]] = True
    return out


class Lookback:
    """Looks at a file that is read in pieces: a piece is held against the one before it as well."""

    def __init__(self) -> None:
        self._before: dict[str, NDArray[np.generic]] = {}

    def find(self, columns: Columns) -> tuple[Array, NDArray[np.bool_]]:
        """Minutes since the trip that each one repeats (`find`), and which are taken back (`voided`), (n,) each."""
        wanted = (*_NEEDED, "total_amount", "dropoff_datetime", "duration_minutes")
        mine = {name: columns[name] for name in wanted if name in columns}
        n, before = row_count(columns), row_count(self._before)
        both = concat([self._before, mine]) if before and self._before.keys() == mine.keys() else mine
        self._before = mine
        start = row_count(both) - n
        return find(both)[start:], voided(both)[start:]
