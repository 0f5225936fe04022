"""What is usual: zone pairs, hours and tolls, fitted on the training split and stored as JSON in the bundle."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fraudlib import tariff
from fraudlib.errors import DataError, SchemaError

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[np.generic]]

ZONES: Final = 266  # taxi zones are numbered 1..265; 0 stands for anything else
MIN_PAIR_TRIPS: Final = 3  # pairs seen less often are left to the back-off
SHRINK_TRIPS: Final = 4.0  # weight of the back-off, in trips
PAIR_STATISTICS: Final = (
    "distance_log",
    "duration_log",
    "count_log",
    "toll_share",
    "toll_log",
    "congestion_share",
    "distance_spread",
    "duration_spread",
    "speed_spread",
)
SPREAD_TRIPS: Final = 12.0  # weight of the overall spread, in trips
MIN_SPREAD: Final = 0.03  # in logs: meters of two taxis on the same road differ by this much


def duration_minutes(columns: Columns, n: int) -> Array:
    """Duration in minutes of shape (n,): as given, else from the two times; NaN where neither is there."""
    given = columns.get("duration_minutes")
    minutes = np.full(n, np.nan) if given is None else given.astype(np.float64)
    pickup, dropoff = columns.get("pickup_datetime"), columns.get("dropoff_datetime")
    if pickup is None or dropoff is None:
        return minutes
    gap = dropoff.astype("datetime64[us]") - pickup.astype("datetime64[us]")
    between = gap.astype(np.float64) / 60e6
    between[np.isnat(gap)] = np.nan
    return np.where(np.isnan(minutes), between, minutes)


@dataclass(frozen=True)
class Statistics:
    """Training statistics.

    Attributes
    ----------
    default_tariff : index into tariff.TARIFFS, taken where a transaction brings no pickup time.
    zones : array of shape (266, 3): learned position (miles, miles) and local detour (miles) of each zone; NaN unseen.
    pair_ids : array of shape (m,), pickup * 266 + dropoff of the pairs seen often enough.
    pair_values : array of shape (m, 9), PAIR_STATISTICS of these pairs.
    overall : array of shape (9,), PAIR_STATISTICS where nothing is known of the pair.
    speed_slope : (intercept, slope) of log duration on log distance, for pairs without a duration of their own.
    hours : array of shape (2, 24): log factor on the duration by weekday/weekend and hour.
    """

    default_tariff: int
    zones: Array
    pair_ids: NDArray[np.int64]
    pair_values: Array
    overall: Array
    speed_slope: tuple[float, float]
    hours: Array
    _table: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_table", self._dense())

    def _dense(self) -> Array:
        """All pairs at once, shape (266 * 266, 9), so that a look-up is one index."""
        table = np.tile(self.overall, (ZONES * ZONES, 1))
        distance = geometry_distance(self.zones)
        known = np.isfinite(distance)
        miles = np.log(np.where(known, distance, 1.0) + 0.1)
        intercept, slope = self.speed_slope
        table[:, 0] = np.where(known, miles, self.overall[0]).ravel()
        table[:, 1] = intercept + slope * table[:, 0]
        table[:, 2] = 0.0
        table[self.pair_ids] = self.pair_values
        return table

    def pairs(self, pickup: Array, dropoff: Array) -> dict[str, Array]:
        """PAIR_STATISTICS of each row; NaN where a zone is missing. Shapes (n,)."""
        missing = np.isnan(pickup) | np.isnan(dropoff)
        ids = _pair_ids(pickup, dropoff)
        rows = self._table[ids]
        rows[missing] = np.nan
        return {name: rows[:, i] for i, name in enumerate(PAIR_STATISTICS)}

    def hour_factor(self, hour: Array, weekend: Array) -> Array:
        """Log factor of the hour on the duration, shape (n,); 0 where the time is missing."""
        known = ~np.isnan(hour)
        h = np.where(known, hour, 0).astype(np.int64) % 24
        w = np.where(known, weekend, 0).astype(np.int64)
        return np.asarray(np.where(known, self.hours[w, h], 0.0))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes null."""
        return {
            "default_tariff": self.default_tariff,
            "zones": [[None if np.isnan(v) else round(float(v), 4) for v in row] for row in self.zones],
            "pair_ids": self.pair_ids.tolist(),
            "pair_values": [[round(float(v), 4) for v in row] for row in self.pair_values],
            "overall": [float(v) for v in self.overall],
            "speed_slope": list(self.speed_slope),
            "hours": self.hours.round(5).tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Statistics":
        """Inverse of `to_json`.

        Raises
        ------
        SchemaError
            If a part is missing or has the wrong shape.
        """
        try:
            zones = np.array([[np.nan if v is None else v for v in row] for row in data["zones"]], dtype=np.float64)
            statistics = cls(
                default_tariff=int(data["default_tariff"]),
                zones=zones,
                pair_ids=np.array(data["pair_ids"], dtype=np.int64),
                pair_values=np.array(data["pair_values"], dtype=np.float64).reshape(-1, len(PAIR_STATISTICS)),
                overall=np.array(data["overall"], dtype=np.float64),
                speed_slope=(float(data["speed_slope"][0]), float(data["speed_slope"][1])),
                hours=np.array(data["hours"], dtype=np.float64),
            )
        except (KeyError, TypeError, ValueError, IndexError) as err:
            raise SchemaError(f"statistics: expected the JSON that notebook 01 writes, found {err!r}") from err
        if zones.shape != (ZONES, 3) or statistics.hours.shape != (2, 24):
            raise SchemaError(f"statistics: expected zones (266, 3) and hours (2, 24), found {zones.shape}")
        return statistics


def _pair_ids(pickup: Array, dropoff: Array) -> NDArray[np.int64]:
    def zone(x: Array) -> NDArray[np.int64]:
        return np.where((x >= 0) & (x < ZONES), x, 0).astype(np.int64)

    return zone(pickup) * ZONES + zone(dropoff)


def geometry_distance(zones: Array) -> Array:
    """Road miles between all zones from their learned positions, shape (266, 266); NaN where a zone is unseen."""
    gap = zones[:, None, :2] - zones[None, :, :2]
    return np.asarray(np.sqrt((gap**2).sum(-1) + 1e-4) + zones[:, None, 2] + zones[None, :, 2])


def fit(columns: Columns) -> Statistics:
    """Statistics of the training split.

    Parameters
    ----------
    columns : canonical name -> array of shape (n,).

    Raises
    ------
    DataError
        If fewer than 100 trips have a distance, a duration and two zones.
    """
    n = len(columns["trip_distance"])
    distance = columns["trip_distance"].astype(np.float64)
    duration = duration_minutes(columns, n)
    pickup = columns["pickup_datetime"].astype("datetime64[us]")
    ids = _pair_ids(columns["pickup_location_id"].astype(np.float64), columns["dropoff_location_id"].astype(np.float64))
    usable = (distance > 0.05) & (distance < 100) & (duration > 0.5) & (duration < 240)
    if usable.sum() < 100:
        raise DataError(
            f"statistics: expected at least 100 trips with distance, duration and zones, found {usable.sum()}"
        )
    miles, minutes = np.log(distance + 0.1), np.log(duration + 0.5)
    seen, start, order, count = _groups(ids[usable])
    pair_miles = _group_median(miles[usable], start, order)
    pair_minutes = _group_median(minutes[usable], start, order)
    zones = _fit_geometry(seen, pair_miles, count)
    slope, intercept = np.polyfit(miles[usable], minutes[usable], 1)
    overall = np.zeros(len(PAIR_STATISTICS))
    overall[:2] = np.median(miles[usable]), np.median(minutes[usable])
    spreads = [_spread(v[usable], start, order, count) for v in (miles, minutes, miles - minutes)]
    back = geometry_distance(zones).ravel()[seen]
    back_miles = np.log(np.where(np.isfinite(back), back, np.exp(overall[0])) + 0.1)
    weight = count / (count + SHRINK_TRIPS)
    pair_miles = weight * pair_miles + (1 - weight) * back_miles
    pair_minutes = weight * pair_minutes + (1 - weight) * (intercept + slope * back_miles)
    tolls = _column(columns, "tolls_amount", n)[usable]
    congestion = _column(columns, "congestion_surcharge", n)[usable]
    values = np.stack(
        [
            pair_miles,
            pair_minutes,
            np.log1p(count),
            _group_mean(np.where(np.isnan(tolls), 0.0, tolls > 0), start, order) * weight,
            _group_mean(np.log1p(np.clip(np.nan_to_num(tolls), 0, None)), start, order) * weight,
            _group_mean(np.where(np.isnan(congestion), 0.0, congestion > 0), start, order) * weight,
            *(spread for spread, _ in spreads),
        ],
        axis=1,
    )
    overall[3:6] = (values[:, 3:6] * count[:, None]).sum(0) / count.sum()
    overall[6:] = [rest for _, rest in spreads]
    often = count >= MIN_PAIR_TRIPS
    statistics = Statistics(
        default_tariff=int(np.median(tariff.tariff_index(pickup))),
        zones=zones,
        pair_ids=seen[often],
        pair_values=values[often],
        overall=overall,
        speed_slope=(float(intercept), float(slope)),
        hours=np.zeros((2, 24)),
    )
    return _with_hours(statistics, columns, minutes, usable)


def _column(columns: Columns, name: str, n: int) -> Array:
    values = columns.get(name)
    return np.full(n, np.nan) if values is None else values.astype(np.float64)


def _groups(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Array]:
    order = np.argsort(ids, kind="stable")
    seen, start, count = np.unique(ids[order], return_index=True, return_counts=True)
    return seen, start, order, count.astype(np.float64)


def _group_mean(values: Array, start: NDArray[np.int64], order: NDArray[np.int64]) -> Array:
    counts = np.diff(np.append(start, len(order)))
    return np.asarray(np.add.reduceat(values[order].astype(np.float64), start) / counts)


def _group_median(values: Array, start: NDArray[np.int64], order: NDArray[np.int64]) -> Array:
    grouped = values[order]
    ends = np.append(start[1:], len(order))
    return np.array([np.median(grouped[a:b]) for a, b in zip(start, ends, strict=True)])


def _spread(values: Array, start: NDArray[np.int64], order: NDArray[np.int64], count: Array) -> tuple[Array, float]:
    """Robust spread of each pair (median absolute deviation, shrunk), and the one of pairs seen too seldom."""
    grouped = values[order]
    centre = np.repeat(_group_median(values, start, order), count.astype(np.int64))
    deviation = np.abs(grouped - centre)
    own = 1.4826 * _group_median(deviation, start, np.arange(len(deviation)))
    often = np.repeat(count >= 5, count.astype(np.int64))
    overall = 1.4826 * float(np.median(deviation[often])) if often.any() else 0.3
    weight = np.maximum(count - 1, 0) / (np.maximum(count - 1, 0) + SPREAD_TRIPS)
    # A pair never seen carries the back-off's own error on top.
    return np.maximum(weight * own + (1 - weight) * overall, MIN_SPREAD), 1.5 * overall


def _with_hours(statistics: Statistics, columns: Columns, minutes: Array, usable: NDArray[np.bool_]) -> Statistics:
    pairs = statistics.pairs(
        columns["pickup_location_id"].astype(np.float64), columns["dropoff_location_id"].astype(np.float64)
    )
    pickup = columns["pickup_datetime"].astype("datetime64[us]")
    usable = usable & ~np.isnat(pickup) & (pairs["count_log"] > 1.5)
    ratio = (minutes - pairs["duration_log"])[usable]
    hour = pickup[usable].astype("datetime64[h]").astype(np.int64)
    weekend = ((hour // 24 + 3) % 7 >= 5).astype(np.int64)
    hours = np.zeros((2, 24))
    for w in range(2):
        for h in range(24):
            mine = ratio[(weekend == w) & (hour % 24 == h)]
            hours[w, h] = np.median(mine) * len(mine) / (len(mine) + 20) if len(mine) else 0.0
    return Statistics(**{**_fields(statistics), "hours": hours})


def _fields(statistics: Statistics) -> dict[str, Any]:
    names = ("default_tariff", "zones", "pair_ids", "pair_values", "overall", "speed_slope")
    return {name: getattr(statistics, name) for name in names}


def _fit_geometry(ids: NDArray[np.int64], miles: Array, count: Array, steps: int = 400) -> Array:
    """Zone positions that explain the pairs' median miles: weighted multidimensional scaling by Adam.

    A pair that was never driven then has a sensible distance as soon as both of its zones were seen.
    Source: Borg and Groenen, Modern Multidimensional Scaling (2005), ch. 8, here on log distances.
    """
    a, b = ids // ZONES, ids % ZONES
    fine = (a > 0) & (b > 0) & (a < 264) & (b < 264)
    a, b, target, weight = a[fine], b[fine], miles[fine], np.sqrt(count[fine])
    weight = weight / weight.sum()
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(0, 3, (ZONES, 2)), np.full((ZONES, 1), 0.3)], axis=1)
    first, second = np.zeros_like(z), np.zeros_like(z)
    for step in range(1, steps + 1):
        gap = z[a, :2] - z[b, :2]
        straight = np.sqrt((gap**2).sum(-1) + 1e-4)
        road = straight + z[a, 2] + z[b, 2] + 0.1
        error = np.tanh((np.log(np.maximum(road, 0.05)) - target) * 2) * weight / np.maximum(road, 0.05)
        pull = error[:, None] * gap / straight[:, None]
        grad = np.zeros_like(z)
        for k in range(2):
            grad[:, k] = np.bincount(a, pull[:, k], ZONES) - np.bincount(b, pull[:, k], ZONES)
        grad[:, 2] = np.bincount(a, error, ZONES) + np.bincount(b, error, ZONES)
        first, second = 0.9 * first + 0.1 * grad, 0.99 * second + 0.01 * grad**2
        rate = 0.3 * (1 - step / (steps + 1)) + 0.005
        z = z - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-9)
        z[:, 2] = np.maximum(z[:, 2], 0.0)
    unseen = np.ones(ZONES, dtype=bool)
    unseen[np.unique(np.concatenate([a, b]))] = False
    z[unseen] = np.nan
    return z
