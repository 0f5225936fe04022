"""One feature path for training and serving: columns of trips in, a float32 matrix out, row by row.

A feature is missing (NaN) where a field that it needs is missing. Fields are what the model hides and is surprised by;
each feature names the fields that it is made of, so that hiding a field hides everything derived from it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fraudlib import tariff
from fraudlib.statistics import Statistics, duration_minutes

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[np.generic]]
Number = Callable[[str], Array]  # a column as float64 of shape (n,), NaN throughout where it is missing

# Fields that the model predicts from the others, in the order of its outputs.
AMOUNT_FIELDS: Final = (
    "trip_distance",
    "duration_minutes",
    "fare_amount",
    "extra",
    "mta_tax",
    "tip_amount",
    "tolls_amount",
    "improvement_surcharge",
    "congestion_surcharge",
    "total_amount",
)
CODE_FIELDS: Final[dict[str, tuple[int, ...]]] = {"rate_code_id": (1, 2, 3, 4, 5), "payment_type": (1, 2, 3, 4)}
# Fields that are context only: never predicted.
CONTEXT_FIELDS: Final = ("pickup_datetime", "zones", "vendor_id", "trip_type", "passenger_count", "service")
FIELDS: Final = (*AMOUNT_FIELDS, *CODE_FIELDS, *CONTEXT_FIELDS)
# Blank together on records of the second submission path; blank is context there, not suspicion.
NULL_BLOCK: Final = ("rate_code_id", "payment_type", "passenger_count", "congestion_surcharge")


@dataclass(frozen=True)
class Feature:
    """A feature: its name and the fields that it is made of."""

    name: str
    fields: tuple[str, ...]


def _f(name: str, *fields: str) -> Feature:
    return Feature(name, fields)


_D, _T, _F, _Z, _P = "trip_distance", "duration_minutes", "fare_amount", "zones", "pickup_datetime"
_PARTS: Final = ("fare_amount", "extra", "mta_tax", "tip_amount", "tolls_amount", "improvement_surcharge")
# A total gives its parts away, so hiding a part hides the total as well.
_ALL_PARTS: Final = (*_PARTS, "congestion_surcharge")

FEATURES: Final[tuple[Feature, ...]] = (
    # targets first: feature i is what the model predicts for AMOUNT_FIELDS[i]
    _f("distance_log", _D),
    _f("duration_log", _T),
    _f("fare_miles_log", _F),
    _f("extra_over_due_log", "extra", _P, "congestion_surcharge"),
    _f("mta_tax_over_due_usd", "mta_tax", _P, "vendor_id"),
    _f("tip_log", "tip_amount"),
    _f("tolls_log", "tolls_amount"),
    _f("improvement_over_due_usd", "improvement_surcharge", _P),
    _f("congestion_usd", "congestion_surcharge"),
    _f("total_residual_log", "total_amount", *_ALL_PARTS),
    # distance and duration against what is usual
    _f("distance_zero", _D),
    _f("distance_pair_ratio", _D, _Z),
    _f("duration_pair_ratio", _T, _Z),
    _f("distance_pair_z", _D, _Z),
    _f("duration_pair_z", _T, _Z),
    _f("speed_pair_z", _D, _T, _Z),
    _f("speed_log", _D, _T),
    _f("speed_pair_ratio", _D, _T, _Z),
    _f("duration_under_a_minute", _T),
    _f("duration_whole_minutes", _T),
    _f("duration_over_a_shift", _T),
    # the meter
    _f("meter_low_log", _D),
    _f("meter_high_log", _D, _T),
    _f("fare_over_low", _F, _D),
    _f("fare_over_high", _F, _D, _T),
    _f("fare_envelope_position", _F, _D, _T),
    _f("fare_per_low_log", _F, _D),
    _f("fare_double_meter", _F, _D, _T),
    _f("fare_on_unit_grid", _F),
    _f("fare_whole_dollar", _F),
    _f("fare_is_minimum", _F),
    _f("fare_is_flat", _F),
    _f("fare_pair_ratio", _F, _Z),
    # surcharges
    _f("extra_none", "extra"),
    _f("congestion_off_pair", "congestion_surcharge", _Z),
    # tips
    _f("tip_share_log", "tip_amount", _F),
    _f("tip_share_of_total", "total_amount", *_ALL_PARTS),
    _f("tip_on_preset", "total_amount", *_ALL_PARTS),
    _f("tip_none", "tip_amount"),
    _f("tip_whole_dollar", "tip_amount"),
    _f("tip_without_card", "tip_amount", "payment_type"),
    # tolls
    _f("toll_off_pair", "tolls_amount", _Z),
    _f("toll_known_value", "tolls_amount"),
    _f("toll_none", "tolls_amount"),
    # the record's arithmetic
    _f("total_log", "total_amount", *_ALL_PARTS),
    _f("total_exact", "total_amount", *_ALL_PARTS),
    _f("total_per_mile_log", "total_amount", _D, *_ALL_PARTS),
    _f("total_pair_ratio", "total_amount", _Z, *_ALL_PARTS),
    # codes
    *(_f(f"rate_code_{code}", "rate_code_id") for code in CODE_FIELDS["rate_code_id"]),
    *(_f(f"payment_{code}", "payment_type") for code in CODE_FIELDS["payment_type"]),
    # context
    _f("hour_sin", _P),
    _f("hour_cos", _P),
    _f("hour_sin2", _P),
    _f("hour_cos2", _P),
    _f("weekend", _P),
    _f("peak_hours", _P),
    _f("night_hours", _P),
    _f("pair_distance_log", _Z),
    _f("pair_duration_log", _Z),
    _f("pair_count_log", _Z),
    _f("pair_distance_spread", _Z),
    _f("pair_speed_spread", _Z),
    _f("pair_toll_share", _Z),
    _f("pair_toll_log", _Z),
    _f("pair_congestion_share", _Z),
    _f("same_zone", _Z),
    _f("pickup_jfk", _Z),
    _f("dropoff_jfk", _Z),
    _f("pickup_lga", _Z),
    _f("dropoff_lga", _Z),
    _f("at_newark", _Z),
    _f("zone_unknown", _Z),
    _f("pair_in_meter_city", _Z),
    _f("vendor_1", "vendor_id"),
    _f("vendor_2", "vendor_id"),
    _f("dispatch_trip", "trip_type"),
    _f("passengers_log", "passenger_count"),
    _f("passengers_none", "passenger_count"),
    _f("null_block", "vendor_id"),
    _f("yellow", "service"),
)
FEATURE_NAMES: Final = tuple(f.name for f in FEATURES)
TARGETS: Final = FEATURE_NAMES[: len(AMOUNT_FIELDS)]
_PLACE: Final = {name: i for i, name in enumerate(FEATURE_NAMES)}
CHUNK: Final = 1024  # rows that are computed at a time: what is made of them on the way stays in the cache


def hides(field: str) -> NDArray[np.bool_]:
    """Which features hiding `field` hides; shape (n_features,)."""
    return np.array([field in feature.fields for feature in FEATURES])


def signed_log(x: Array) -> Array:
    """sign(x) log(1 + |x|): keeps zero, tames amounts of any size and sign."""
    return np.sign(x) * np.log1p(np.abs(x))


def signed_exp(y: Array) -> Array:
    """Inverse of `signed_log`."""
    return np.sign(y) * np.expm1(np.abs(y))


DISTANCE_FLOOR: Final = 0.1  # miles; the resolution below which meters lose distance
DURATION_FLOOR: Final = 0.5  # minutes


def observed_fields(columns: Columns, n: int) -> dict[str, NDArray[np.bool_]]:
    """Which rows carry which field; each array of shape (n,)."""
    number = _numbers(columns, n)
    observed = {
        f: ~np.isnan(number(f)) for f in (*AMOUNT_FIELDS, *CODE_FIELDS, "vendor_id", "trip_type", "passenger_count")
    }
    observed["duration_minutes"] = ~np.isnan(duration_minutes(columns, n))
    observed["service"] = ~np.isnan(number("service"))
    observed["pickup_datetime"] = ~np.isnat(_times(columns, "pickup_datetime", n))
    observed["zones"] = ~(np.isnan(number("pickup_location_id")) | np.isnan(number("dropoff_location_id")))
    return observed


def _numbers(columns: Columns, n: int) -> Number:
    empty = np.full(n, np.nan)

    def number(name: str) -> Array:
        values = columns.get(name)
        return empty if values is None else values.astype(np.float64, copy=False)

    return number


def _times(columns: Columns, name: str, n: int) -> NDArray[np.datetime64]:
    values = columns.get(name)
    return np.full(n, np.datetime64("NaT", "us")) if values is None else values.astype("datetime64[us]", copy=False)


def row_count(columns: Columns) -> int:
    """Number of rows of a set of columns."""
    return len(next(iter(columns.values()))) if columns else 0


@dataclass(frozen=True)
class Clock:
    """What the pickup time says: tariff index, hour as a float, weekend, surcharge windows, CBD fee in force.

    Attributes
    ----------
    rates : field of the tariff -> its value in force at each trip, (n,), USD.
    """

    index: NDArray[np.int64]
    rates: dict[str, Array]
    hour: Array
    weekend: Array
    peak: Array
    night: Array
    known: NDArray[np.bool_]
    cbd: NDArray[np.bool_]


def clock(pickup: NDArray[np.datetime64], statistics: Statistics) -> Clock:
    """Calendar facts of each pickup; NaN where the time is missing, the training months' tariff where it is."""
    known = ~np.isnat(pickup)
    minutes = np.where(known, pickup.view(np.int64) // 60_000_000, 0)
    day = minutes // 1440
    hour = np.where(known, (minutes - day * 1440) / 60.0, np.nan)
    weekday = (day + 3) % 7  # 1970-01-01 was a Thursday
    working = weekday < 5
    index = tariff.tariff_index(pickup, statistics.default_tariff)
    return Clock(
        index,
        tariff.rates(index),
        hour,
        np.where(known, ~working, np.nan),
        np.where(known, working & (hour >= 16) & (hour < 20), np.nan),
        np.where(known, (hour >= 20) | (hour < 6), np.nan),
        known,
        ~(pickup < tariff.CBD_START),
    )


def usd_per_mile(columns: Columns, statistics: Statistics) -> Array:
    """The meter's rate in force at each trip, (n,), USD: the unit of the fare among the features."""
    pickup = _times(columns, "pickup_datetime", row_count(columns))
    return tariff.rate("per_mile", tariff.tariff_index(pickup, statistics.default_tariff))


def build(columns: Columns, statistics: Statistics) -> NDArray[np.float32]:
    """Features of every row.

    Parameters
    ----------
    columns : canonical name -> array of shape (n,); a missing column is a missing field.
    statistics : what is usual, fitted on the training split.

    Returns
    -------
    array of shape (n, n_features), float32, in the order of FEATURE_NAMES; NaN where missing.
    """
    out = np.empty((row_count(columns), len(FEATURES)), dtype=np.float32)
    _fill(out.T, columns, statistics)
    return out


def by_feature(columns: Columns, statistics: Statistics) -> NDArray[np.float32]:
    """The features of `build` with each one's values side by side: (n_features, n), float32."""
    out = np.empty((len(FEATURES), row_count(columns)), dtype=np.float32)
    _fill(out, columns, statistics)
    return out


def _fill(out: NDArray[np.float32], columns: Columns, statistics: Statistics) -> None:
    n = row_count(columns)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for start in range(0, n, CHUNK):
            rows = slice(start, start + CHUNK)
            part = columns if n <= CHUNK else take(columns, rows)
            out[:, rows] = _filled(_features(part, statistics, row_count(part)), row_count(part))
    np.copyto(out, np.nan, where=np.isinf(out))


class _Flag(NamedTuple):
    """A feature that is 1 where the condition holds, else 0, and missing where what it needs is."""

    condition: NDArray[np.bool_]
    needs: Array


class _Log(NamedTuple):
    """A feature that is the signed log of a value, less something."""

    value: Array
    less: Array | None = None


_Values = dict[str, "Array | _Flag | _Log"]


def _filled(values: _Values, n: int) -> Array:
    """Every feature, (F, n). What is alike is computed together: on a few rows each call costs as much as ten rows."""
    flags = {name: value for name, value in values.items() if isinstance(value, _Flag)}
    logs = {name: value for name, value in values.items() if isinstance(value, _Log)}
    plain = {name: value for name, value in values.items() if not isinstance(value, tuple)}
    out = np.empty((len(FEATURES), n))
    out[[_PLACE[name] for name in plain]] = np.array([*plain.values()])
    needs = np.array([flag.needs for flag in flags.values()])
    holds = np.array([flag.condition for flag in flags.values()])
    out[[_PLACE[name] for name in flags]] = np.where(np.isnan(needs), np.nan, holds)
    taken = signed_log(np.array([log.value for log in logs.values()]))
    for row, log in zip(taken, logs.values(), strict=True):
        if log.less is not None:
            row -= log.less
    out[[_PLACE[name] for name in logs]] = taken
    return out


def _features(columns: Columns, statistics: Statistics, n: int) -> _Values:
    number = _numbers(columns, n)
    pickup = _times(columns, "pickup_datetime", n)
    when = clock(pickup, statistics)
    distance, fare = number("trip_distance"), number("fare_amount")
    duration = duration_minutes(columns, n)
    stamped = ~np.isnat(pickup) & ~np.isnat(_times(columns, "dropoff_datetime", n))
    pair = statistics.pairs(number("pickup_location_id"), number("dropoff_location_id"))
    vendor = number("vendor_id")
    out: _Values = {}
    out |= _travel(distance, duration, stamped, pair, when, statistics)
    out |= _meter(distance, duration, fare, pair, when)
    out |= _charges(number, fare, distance, vendor, pair, when)
    out |= _codes(number)
    out |= _context(number, when, pair, vendor)
    return out


def _travel(
    distance: Array,
    duration: Array,
    stamped: NDArray[np.bool_],
    pair: Mapping[str, Array],
    when: Clock,
    statistics: Statistics,
) -> _Values:
    miles = np.log(np.maximum(distance, 0.0) + DISTANCE_FLOOR)
    # Drop-offs stamped almost a day late are a clock error of one vendor; the duration then says nothing.
    shift = duration > 20 * 60
    minutes = np.log(np.maximum(duration, 0.0) + DURATION_FLOOR)
    minutes = np.where(shift, np.nan, minutes)
    usual = pair["duration_log"] + statistics.hour_factor(when.hour, when.weekend)
    speed = miles - minutes
    return {
        "distance_log": miles,
        "duration_log": minutes,
        "distance_zero": _Flag(distance <= 0, distance),
        "distance_pair_ratio": miles - pair["distance_log"],
        "duration_pair_ratio": minutes - usual,
        "speed_log": speed,
        "distance_pair_z": _between((miles - pair["distance_log"]) / pair["distance_spread"], -12.0, 12.0),
        "duration_pair_z": _between((minutes - usual) / pair["duration_spread"], -12.0, 12.0),
        "speed_pair_z": _between((speed - pair["distance_log"] + usual) / pair["speed_spread"], -12.0, 12.0),
        "speed_pair_ratio": speed - (pair["distance_log"] - usual),
        "duration_under_a_minute": _Flag(duration < 1, duration),
        # Times without seconds tell of another submission path; a duration that somebody rounded tells nothing.
        "duration_whole_minutes": _Flag((duration == np.rint(duration)) & stamped, duration),
        "duration_over_a_shift": _Flag(shift, duration),
    }


def _between(x: Array, least: float | Array, most: float | Array) -> Array:
    return np.minimum(np.maximum(x, least), most)  # several times as fast as np.clip on a few rows


def _meter(distance: Array, duration: Array, fare: Array, pair: Mapping[str, Array], when: Clock) -> _Values:
    base, per_mile, per_minute = (when.rates[f] for f in ("base", "per_mile", "per_minute"))
    # In miles of the meter's own rate a fare reads the same before and after the tariff changes.
    fare_miles, minute = (fare - base) / per_mile, per_minute / per_mile
    low = _between(distance, 0.0, 500.0)
    minutes = np.where(duration > 20 * 60, np.nan, _between(duration, 0.0, 20 * 60.0))
    high = low + minute * minutes
    steps, low_log = fare_miles * 5, np.log1p(low)
    return {
        "fare_miles_log": _Log(fare_miles),
        "meter_low_log": low_log,
        "meter_high_log": np.log1p(high),
        "fare_over_low": _Log(fare_miles - low),
        "fare_over_high": _Log(np.maximum(fare_miles - high - 0.4, 0.0)),
        "fare_envelope_position": _between((fare_miles - low) / (minute * np.maximum(minutes, 1.0)), -2.0, 4.0),
        "fare_per_low_log": _Log(fare_miles, low_log),
        "fare_double_meter": _between((fare_miles - 2 * low) / (minute * minutes + 1.0), -4.0, 4.0),
        "fare_on_unit_grid": _Flag(np.abs(steps - np.rint(steps)) < 0.02, fare),
        "fare_whole_dollar": _Flag(np.rint(fare) == fare, fare),
        "fare_is_minimum": _Flag(np.abs(fare - base) < 0.005, fare),
        "fare_is_flat": _Flag(np.abs(fare - when.rates["jfk_flat"]) < 0.005, fare),
        "fare_pair_ratio": _Log(
            fare_miles, np.log1p(np.exp(pair["distance_log"]) + 0.35 * minute * np.exp(pair["duration_log"]))
        ),
    }


TOLL_VALUES: Final = (5.54, 5.76, 6.12, 6.55, 6.94, 2.8, 2.29, 2.45, 12.75, 13.1, 13.88, 11.75, 11.52, 12.24)
TIP_PRESETS: Final = (0.20, 0.25, 0.30)  # shares of the sum before the tip that card terminals offer
_COLUMN_OF_TOLLS: Final = np.array(TOLL_VALUES)[:, None]
_COLUMN_OF_PRESETS: Final = np.array(TIP_PRESETS)[:, None]


def _charges(
    number: Number, fare: Array, distance: Array, vendor: Array, pair: Mapping[str, Array], when: Clock
) -> _Values:
    extra, mta, tip, tolls = number("extra"), number("mta_tax"), number("tip_amount"), number("tolls_amount")
    improvement, congestion, total = (
        number("improvement_surcharge"),
        number("congestion_surcharge"),
        number("total_amount"),
    )
    total_miles, payment = total / when.rates["per_mile"], number("payment_type")
    due = np.where(when.peak > 0, when.rates["peak"], 0.0)
    due = np.where(when.night > 0, when.rates["night"], due)
    first = vendor == 1
    charged = ("congestion_surcharge", "mta_tax", "tip_amount", "tolls_amount", "improvement_surcharge")
    zeroed = np.nan_to_num(np.array([number(name) for name in (*charged, "airport_fee", "cbd_congestion_fee")]))
    congestion_0, mta_0, tip_0, tolls_0, improvement_0, airport_0, cbd_0 = zeroed
    # Vendor 1 repeats the congestion surcharge inside `extra`, and from 2023 the improvement one inside `mta_tax`.
    own_extra = np.where(first, extra - congestion_0, extra)
    # Without the time whatever could be due is taken to be.
    due = np.where(when.known, due, _between(own_extra, 0.0, when.rates["peak"]))
    improvement_due = when.rates["improvement"]
    folded = first & (when.index == len(tariff.TARIFFS) - 1)
    mta_due = when.rates["mta_tax"] + np.where(folded, improvement_due, 0.0)
    others = fare + extra + mta_0 + tip_0 + tolls_0 + improvement_0 + _fees_due(airport_0, cbd_0, when)
    residual = total - others - np.where(first, 0.0, congestion_0)
    residual = residual + np.where(first & (mta > 1.0), improvement, 0.0)
    residual = np.round(residual, 2)
    before_tip = total - tip
    share = _between(tip / np.where(np.abs(before_tip) < 0.01, np.nan, before_tip), -1.0, 20.0)
    preset = np.abs(share - _COLUMN_OF_PRESETS).min(axis=0) < 0.004
    toll_known = np.abs(tolls - _COLUMN_OF_TOLLS).min(axis=0) < 0.005
    congestion_usd = _between(congestion, -5.0, 20.0)
    return {
        "extra_over_due_log": _Log(own_extra - due),
        "extra_none": _Flag(extra == 0, extra),
        "mta_tax_over_due_usd": _between(mta - mta_due, -5.0, 20.0),
        "tip_log": _Log(tip),
        "tip_share_log": _Log(_between(tip / np.maximum(np.abs(fare), 1.0), -1.0, 50.0)),
        "tip_share_of_total": _Log(share),
        "tip_on_preset": _Flag(preset, before_tip),
        "tip_none": _Flag(tip == 0, tip),
        "tip_whole_dollar": _Flag((np.rint(tip) == tip) & (tip != 0), tip),
        "tip_without_card": _Flag((tip > 0) & (payment > 1), tip + payment),
        "tolls_log": _Log(tolls),
        "toll_off_pair": _Log(tolls, pair["toll_log"]),
        "toll_known_value": _Flag(toll_known, tolls),
        "toll_none": _Flag(tolls == 0, tolls),
        "improvement_over_due_usd": _between(improvement - improvement_due, -5.0, 20.0),
        "congestion_usd": congestion_usd,
        "congestion_off_pair": congestion_usd - 2.75 * pair["congestion_share"],
        "total_residual_log": _Log(residual),
        "total_exact": _Flag(np.abs(residual) < 0.011, total),
        "total_log": _Log(total_miles),
        "total_per_mile_log": _Log(total_miles, np.log1p(_between(distance, 0.0, 500.0))),
        "total_pair_ratio": _Log(total_miles, np.log1p(2.0 + 1.6 * np.exp(pair["distance_log"]))),
    }


def _fees_due(airport: Array, cbd: Array, when: Clock) -> Array:
    """Airport and CBD fees as far as they can be due, (n,), USD; what is charged beyond stays in the residual."""
    airport = _between(airport, -tariff.AIRPORT_FEE_USD, tariff.AIRPORT_FEE_USD)
    return airport + np.where(when.cbd, _between(cbd, -tariff.CBD_FEE_USD, tariff.CBD_FEE_USD), 0.0)


def _codes(number: Number) -> dict[str, _Flag]:
    rate, payment = number("rate_code_id"), number("payment_type")
    out = {f"rate_code_{c}": _Flag(rate == c, rate) for c in CODE_FIELDS["rate_code_id"]}
    return out | {f"payment_{c}": _Flag(payment == c, payment) for c in CODE_FIELDS["payment_type"]}


def _context(number: Number, when: Clock, pair: Mapping[str, Array], vendor: Array) -> _Values:
    angle = when.hour * (2 * np.pi / 24)
    angles = np.array([angle, 2 * angle])
    sine, cosine = np.sin(angles), np.cos(angles)
    pickup, dropoff = number("pickup_location_id"), number("dropoff_location_id")
    passengers, both = number("passenger_count"), pickup + dropoff
    blank = np.isnan(np.array([number(f) for f in NULL_BLOCK])).all(axis=0)
    return {
        "hour_sin": sine[0],
        "hour_cos": cosine[0],
        "hour_sin2": sine[1],
        "hour_cos2": cosine[1],
        "weekend": when.weekend,
        "peak_hours": when.peak,
        "night_hours": when.night,
        "pair_distance_log": pair["distance_log"],
        "pair_duration_log": pair["duration_log"],
        "pair_count_log": pair["count_log"],
        "pair_distance_spread": pair["distance_spread"],
        "pair_speed_spread": pair["speed_spread"],
        "pair_toll_share": pair["toll_share"],
        "pair_toll_log": pair["toll_log"],
        "pair_congestion_share": pair["congestion_share"],
        "same_zone": _Flag(pickup == dropoff, both),
        "pickup_jfk": _Flag(pickup == tariff.JFK, both),
        "dropoff_jfk": _Flag(dropoff == tariff.JFK, both),
        "pickup_lga": _Flag(pickup == tariff.LGA, both),
        "dropoff_lga": _Flag(dropoff == tariff.LGA, both),
        "at_newark": _Flag((pickup == tariff.EWR) | (dropoff == tariff.EWR), both),
        "zone_unknown": _Flag((pickup > 263) | (dropoff > 263), both),
        "pair_in_meter_city": _Flag((pickup <= 263) & (dropoff <= 263) & (dropoff != tariff.EWR), both),
        "vendor_1": _Flag(vendor == 1, vendor),
        "vendor_2": _Flag(vendor == 2, vendor),
        "dispatch_trip": _Flag(number("trip_type") == 2, number("trip_type")),
        "passengers_log": np.log1p(_between(passengers, 0, 9)),
        "passengers_none": _Flag(passengers == 0, passengers),
        "null_block": _Flag(blank, vendor),
        "yellow": number("service"),
    }


def take(columns: Columns, rows: NDArray[np.generic] | slice) -> dict[str, NDArray[np.generic]]:
    """The same columns for some rows (indices, mask or slice)."""
    return {name: values[rows] for name, values in columns.items()}


def concat(parts: Sequence[Columns]) -> dict[str, NDArray[np.generic]]:
    """Columns of several parts one after another; all parts must have the same names."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
